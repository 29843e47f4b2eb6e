// Texts as points of a plane, coloured and shaped by label.

import { bytesPerVector, dot, embed, search } from "./api.js";
import { choices } from "./choices.js";
import { $, busy, lines, make, makeSvg, roving, showCost } from "./dom.js";
import { plane } from "./pca.js";
import { LABELLED } from "./samples.js";

const MOST = 300;
const STEM = " id";

/** The beginning of an id, up to its first dot, slash, colon, dash or number: often a package, a folder or a source. */
const stem = (id) => id.split(/[./:\-\d]/, 1)[0] || id;
const KINDS = 8;
const EDGE = 24;
const size = () => (matchMedia("(max-width: 46rem)").matches ? [360, 360] : [640, 440]);

// Shapes around the origin, of about the same area.
const SHAPES = [
  "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
  "M-5.5 -5.5h11v11h-11z",
  "M0 -7.5l7 12.5h-14z",
  "M0 -8l7 8l-7 8l-7 -8z",
  "M0 7.5l7 -12.5h-14z",
  "M-2 -7h4v5h5v4h-5v5h-4v-5h-5v-4h5z",
  "M-7 -3l7 -5l7 5l-2.6 8.5h-8.8z",
  "M-7 -2.5h14v5h-14z",
];

export function setUp(model, index) {
  $("map-texts").value = LABELLED.map(([label, text]) => `${label}: ${text}`).join("\n");
  const task = model.tasks.includes("clustering") ? "clustering" : "base";
  const rerun = () => busy($("map-form"), run);
  const setup = choices($("choices-map"), model, { task, dim: model.embedding_dim, precision: "float32" }, rerun);
  if (index) {
    $("map-source").hidden = false;
    $("map-source").addEventListener("change", () => {
      $("map-index").hidden = !fromIndex();
      $("map-texts-box").hidden = fromIndex();
      rerun();
    });
    const fields = [...index.metadata.map((name) => [name, name]), [STEM, "beginning of the id"], ["", "(nothing)"]];
    $("map-field").append(...fields.map(([value, name]) => make("option", { value }, name)));
    $("map-field").addEventListener("change", rerun);
  }
  $("map-form").addEventListener("submit", (event) => {
    event.preventDefault();
    rerun();
  });
  const fromIndex = () => Boolean(index) && $("map-form").elements["map-source"].value === "index";

  async function points() {
    if (!fromIndex()) {
      return lines($("map-texts")).slice(0, MOST).map((line) => {
        const at = line.indexOf(":");
        return at < 0 ? { label: "", text: line } : { label: line.slice(0, at).trim(), text: line.slice(at + 1).trim() };
      }).filter((each) => each.text);
    }
    const field = $("map-field").value;
    const said = await search({ query: $("map-query").value.trim() || "the", top_k: 200 });
    return said.results[0].map((hit) => ({ label: field === STEM ? stem(hit.id) : String(hit.metadata[field] ?? ""), text: hit.text }));
  }

  async function run(current) {
    const all = await points();
    if (all.length < 3) throw new Error("Give at least three texts.");
    const chosen = setup();
    const { vectors, ms } = await embed(all.map((each) => each.text), chosen);
    if (!current()) return;
    const { places, share } = plane(vectors);
    const kinds = commonest(all.map((each) => each.label));
    const kindOf = (label) => Math.max(0, kinds.indexOf(kinds.includes(label) ? label : "other"));
    const facts = [["all texts in", `${ms.toFixed(1)} ms`], ["bytes per vector", String(bytesPerVector(chosen))], ["variance shown", `${Math.round(100 * share)} %`]];
    if (kinds.length > 1) facts.push(["nearest has the same label", `${Math.round(100 * neighbours(vectors, all))} %`]);
    showCost($("cost-map"), facts);
    draw(all, places, kindOf);
    legend(kinds);
    table(all);
  }

  function draw(all, places, kindOf) {
    const [width, height] = size();
    const scale = [0, 1].map((axis) => {
      const values = places.map((place) => place[axis]);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return (value, length) => EDGE + ((value - low) / (high - low || 1)) * (length - 2 * EDGE);
    });
    const spots = places.map((place) => [scale[0](place[0], width), height - scale[1](place[1], height)]);
    const marks = all.map((each, i) => {
      const kind = kindOf(each.label);
      const tell = () => {
        $("plot-point").textContent = `${each.label ? each.label + ": " : ""}${each.text}`;
      };
      return makeSvg("path", {
        d: SHAPES[kind], class: `c${kind}`, transform: `translate(${spots[i][0].toFixed(1)} ${spots[i][1].toFixed(1)})`,
        role: "img", "aria-label": `${each.label || "no label"}: ${each.text.slice(0, 120)}`, onfocus: tell, onmouseenter: tell, onclick: tell,
      });
    });
    const cross = [makeSvg("line", { x1: width / 2, x2: width / 2, y1: 0, y2: height }), makeSvg("line", { x1: 0, x2: width, y1: height / 2, y2: height / 2 })];
    $("plot").replaceChildren(makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Map of the texts" }, ...cross, ...marks));
    $("plot-point").textContent = "";
    roving(marks, (at, way) => nearestIn(spots, at, way));
  }

  return rerun;
}

/** The nearest point in the direction of an arrow key. */
function nearestIn(spots, at, way) {
  const [x, y] = { Up: [0, -1], Down: [0, 1], Left: [-1, 0], Right: [1, 0] }[way];
  let best = null, least = Infinity;
  spots.forEach(([px, py], i) => {
    const along = (px - spots[at][0]) * x + (py - spots[at][1]) * y;
    const aside = Math.abs((px - spots[at][0]) * y) + Math.abs((py - spots[at][1]) * x);
    if (i !== at && along > 0 && along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
  });
  return best;
}

/** The commonest labels; the last colour is for all the others. */
function commonest(labels) {
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) || 0) + 1);
  const sorted = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  return sorted.length <= KINDS ? sorted : [...sorted.slice(0, KINDS - 1), "other"];
}

function neighbours(vectors, all) {
  const same = vectors.filter((vector, i) => {
    let best = -1, most = -Infinity;
    vectors.forEach((other, j) => {
      const value = i === j ? -Infinity : dot(vector, other);
      if (value > most) [best, most] = [j, value];
    });
    return all[best].label === all[i].label;
  });
  return same.length / vectors.length;
}

function legend(kinds) {
  $("legend").replaceChildren(...kinds.map((label, kind) =>
    make("li", {}, makeSvg("svg", { viewBox: "-9 -9 18 18", "aria-hidden": "true" }, makeSvg("path", { d: SHAPES[kind], class: `c${kind}` })), label || "no label")));
}

function table(all) {
  $("map-table-box").hidden = false;
  const head = make("tr", {}, make("th", { scope: "col" }, "Label"), make("th", { scope: "col" }, "Text"));
  const rows = all.map((each) => make("tr", {}, make("td", {}, each.label), make("td", {}, each.text)));
  $("map-table").replaceChildren(make("table", { class: "data" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}
