// One query, two rankings side by side.

import { bytesPerVector, dot, embed, search, unit } from "./api.js";
import { choices, sizes } from "./choices.js";
import { $, busy, lines, make, showCost } from "./dom.js";
import { TEXTS } from "./samples.js";

const CANDIDATES = 50;
const SHOWN = 10;
const INDEX = "index";

export function setUp(model, index) {
  const area = $("search-texts");
  area.value = TEXTS.join("\n");
  const dims = sizes(model);
  const small = dims[Math.min(1, dims.length - 1)].size;
  const task = model.tasks.includes("retrieval") ? "retrieval" : "base";
  const own = index ? [[INDEX, "as indexed"]] : [];
  const rerank = () => busy($("search-form"), run);
  const setupA = choices($("choices-a"), model, { task: index ? index.task || "base" : task, dim: index ? index.dim : model.embedding_dim, precision: index ? INDEX : "float32" }, rerank, own);
  const setupB = choices($("choices-b"), model, { task, dim: small, precision: "binary" }, rerank);
  const full = new Map();

  if (index) {
    $("search-source").hidden = false;
    $("index-facts").textContent = `the index (${index.documents.toLocaleString("en")} documents)`;
    $("search-texts-box").open = false;
    $("search-source").addEventListener("change", () => {
      const texts = !fromIndex();
      $("search-texts-box").open = texts;
      const option = $("choices-a").querySelector(`option[value="${INDEX}"]`);
      option.disabled = texts;
      const select = option.parentElement;
      if (texts && select.value === INDEX) select.value = "float32";
      select.dispatchEvent(new Event("change"));
    });
  }
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    rerank();
  });

  /** An index gets a query that finds something: the beginning of one of its passages. */
  async function firstQuery() {
    const [hit] = index ? (await search({ query: "example", top_k: 1 })).results[0] : [];
    if (hit) $("query").value = hit.text.split(/\s+/).slice(0, 7).join(" ").slice(0, 80);
  }

  const fromIndex = () => Boolean(index) && $("search-form").elements.source.value === "index";
  const queryPrompt = (name) => (["base", "retrieval"].includes(name) && "query" in model.prompts ? "query" : undefined);

  /** Vectors of candidates; cut and binary ones follow from the full ones, so that switching is immediate. */
  async function documents(texts, setup) {
    if (setup.precision === "int8") return (await embed(texts, setup)).vectors;
    const missing = texts.filter((text) => !full.has(`${setup.task} ${text}`));
    if (missing.length) {
      const { vectors } = await embed(missing, { task: setup.task, dim: model.embedding_dim, precision: "float32" });
      missing.forEach((text, i) => full.set(`${setup.task} ${text}`, vectors[i]));
    }
    const size = 1 / Math.sqrt(setup.dim);
    return texts.map((text) => {
      const cut = full.get(`${setup.task} ${text}`).subarray(0, setup.dim);
      return setup.precision === "binary" ? cut.map((value) => (value > 0 ? size : -size)) : unit(cut);
    });
  }

  async function ranked(setup, query, candidates, found) {
    if (setup.precision === INDEX) {
      const stored = { float32: 4, float16: 2, int8: 1, none: 0 }[index.rescore] * index.dim;
      return {
        order: candidates.map((_, i) => i),
        facts: [["answer", `${found.total.toFixed(1)} ms`], ["of it ranking", `${found.ranking.toFixed(1)} ms`], ["bytes per vector", String(Math.ceil(index.dim / 8) + stored)]],
      };
    }
    const asked = await embed([query], { ...setup, prompt: queryPrompt(setup.task) });
    const vectors = await documents(candidates.map((each) => each.text), setup);
    const scores = vectors.map((vector) => dot(vector, asked.vectors[0]));
    const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
    return { order, scores, facts: [["query embedded in", `${asked.ms.toFixed(1)} ms`], ["bytes per vector", String(bytesPerVector(setup))]] };
  }

  async function run(current) {
    const query = $("query").value.trim();
    if (!query) throw new Error("Type a query.");
    let candidates, found;
    if (fromIndex()) {
      const said = await search({ query, top_k: CANDIDATES });
      candidates = said.results[0];
      found = said.milliseconds;
    } else {
      candidates = lines(area).slice(0, 500).map((text) => ({ text }));
    }
    if (!candidates.length) throw new Error("There is nothing to search in.");
    const a = await ranked(setupA(), query, candidates, found);
    const b = await ranked(setupB(), query, candidates, found);
    if (!current()) return;
    const before = new Map(a.order.map((candidate, rank) => [candidate, rank]));
    list($("hits-a"), a, candidates);
    list($("hits-b"), b, candidates, before);
    showCost($("cost-a"), a.facts);
    showCost($("cost-b"), b.facts);
    const top = Math.min(SHOWN, candidates.length);
    const same = b.order.slice(0, top).filter((candidate) => before.get(candidate) < top).length;
    const moved = b.order.slice(0, top).filter((candidate, rank) => before.get(candidate) !== rank).length;
    const among = fromIndex() ? ` Both rank the ${candidates.length} passages that the index finds.` : "";
    $("search-verdict").textContent = `${same} of the first ${top} are the same; ${moved} of B’s stand at another rank than in A.${among}`;
  }

  function list(place, ranking, candidates, before) {
    place.replaceChildren(
      ...ranking.order.slice(0, SHOWN).map((candidate, rank) => {
        const hit = candidates[candidate];
        const parts = [make("span", { class: "rank" }, String(rank + 1))];
        if (before) parts.push(move(before.get(candidate) - rank, before.get(candidate)));
        parts.push(make("span", { class: "text" }, hit.text));
        const score = ranking.scores ? ranking.scores[candidate] : hit.score;
        const from = hit.id === undefined ? "" : ` · ${hit.id}, characters ${hit.start}–${hit.end}`;
        parts.push(make("span", { class: "from" }, `${score.toFixed(3)}${from}`));
        return make("li", {}, ...parts);
      }),
    );
  }

  return async () => {
    await firstQuery();
    await rerank();
  };
}

function move(up, rank) {
  if (up === 0) return make("span", { class: "move quiet" }, "=", make("span", { class: "sr" }, " same rank"));
  const from = `was ${rank + 1} in A`;
  const text = up > 0 ? `▲ ${up}` : `▼ ${-up}`;
  return make("span", { class: `move ${up > 0 ? "up" : "down"}`, title: from }, text, make("span", { class: "sr" }, `, ${from}`));
}
