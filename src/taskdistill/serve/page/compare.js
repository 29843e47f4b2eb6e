// Texts pairwise as a heat map.

import { bytesPerVector, dot, embed } from "./api.js";
import { choices } from "./choices.js";
import { $, busy, lines, make, roving, showCost } from "./dom.js";
import { PAIRS } from "./samples.js";

const MOST = 24;

export function setUp(model) {
  $("compare-texts").value = PAIRS.join("\n");
  const task = model.tasks.includes("text-matching") ? "text-matching" : "base";
  const rerun = () => busy($("compare-form"), run);
  const setup = choices($("choices-compare"), model, { task, dim: model.embedding_dim, precision: "float32" }, rerun);
  $("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    rerun();
  });

  async function run(current) {
    const texts = lines($("compare-texts")).slice(0, MOST);
    if (texts.length < 2) throw new Error("Give at least two texts.");
    const chosen = setup();
    const { vectors, ms } = await embed(texts, chosen);
    if (!current()) return;
    const values = vectors.map((a) => vectors.map((b) => dot(a, b)));
    const others = values.flatMap((row, i) => row.filter((_, j) => i !== j));
    const low = Math.min(...others);
    const high = Math.max(...others);
    showCost($("cost-compare"), [["all texts in", `${ms.toFixed(1)} ms`], ["bytes per vector", String(bytesPerVector(chosen))], ["colours from", `${low.toFixed(2)} to ${high.toFixed(2)}`]]);
    draw(texts, values, low, high);
  }

  function draw(texts, values, low, high) {
    const cells = [];
    const head = make("tr", {}, make("td", {}), ...texts.map((text, j) => make("th", { scope: "col", title: text }, String(j + 1))));
    head.firstChild.className = "corner";
    const rows = texts.map((text, i) =>
      make("tr", {}, make("th", { scope: "row", title: text }, `${i + 1}  ${text}`), ...values[i].map((value, j) => {
        const strength = high > low ? Math.max(0, Math.min(1, (value - low) / (high - low))) : 1;
        const cell = make("td", { onfocus: () => tell(i, j, value), onmouseenter: () => tell(i, j, value) }, value.toFixed(2).replace("-0.00", "0.00"));
        cell.style.setProperty("--v", strength * 100);
        cells.push(cell);
        return cell;
      })),
    );
    const caption = make("caption", { class: "sr" }, "Similarity of each pair of texts");
    $("heat").replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
    const n = texts.length;
    roving(cells, (at, way) => {
      const [i, j] = [Math.floor(at / n), at % n];
      const [down, right] = { Up: [-1, 0], Down: [1, 0], Left: [0, -1], Right: [0, 1] }[way];
      return i + down < 0 || i + down >= n || j + right < 0 || j + right >= n ? null : (i + down) * n + j + right;
    });
    const tell = (i, j, value) => {
      $("heat-pair").textContent = `${value.toFixed(3)}: “${texts[i]}” and “${texts[j]}”`;
    };
    $("heat-pair").textContent = "";
  }

  return rerun;
}
