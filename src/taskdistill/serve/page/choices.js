// Task, dimension and precision, as three selects.

import { make } from "./dom.js";

let count = 0;

/** Sizes to offer: those the model was trained for, or else the full size and parts of it. */
export function sizes(model) {
  const full = model.embedding_dim;
  const trained = new Set([...model.matryoshka_dims, full]);
  const parts = trained.size > 1 ? [] : [full / 2, full / 4, full / 8].filter((size) => Number.isInteger(size) && size >= 8);
  return [...new Set([...trained, ...parts])].sort((a, b) => b - a).map((size) => ({ size, trained: trained.has(size) }));
}

/**
 * Fill an element with the three selects.
 * @param {object} start {task, dim, precision} to begin with
 * @param {string[]} first further entries at the head of the precisions, such as the index itself
 * @returns {() => object} reads the setup
 */
export function choices(place, model, start, changed, first = []) {
  const task = select("Task", ["base", ...model.tasks].map((name) => [name, name]), start.task);
  const dim = select("Dimensions", sizes(model).map(({ size, trained }) => [String(size), trained ? `${size}` : `${size} (untrained)`]), String(start.dim));
  const precision = select("Precision", [...first, ["float32", "float32"], ["int8", "int8"], ["binary", "binary"]], start.precision);

  function fit() {
    const stored = model.int8_dims[task.node.value] || [];
    const int8 = [...precision.node.options].find((option) => option.value === "int8");
    int8.disabled = !stored.includes(Number(dim.node.value));
    int8.textContent = int8.disabled ? "int8 (not stored)" : "int8";
    if (int8.disabled && int8.selected) precision.node.value = "float32";
    const fixed = first.some(([name]) => name === precision.node.value);
    task.node.disabled = dim.node.disabled = fixed;
  }

  for (const { node } of [task, dim, precision]) {
    node.addEventListener("change", () => {
      fit();
      changed();
    });
  }
  fit();
  place.replaceChildren(task.box, dim.box, precision.box);
  return () => ({ task: task.node.value, dim: Number(dim.node.value), precision: precision.node.value });
}

function select(name, entries, value) {
  const id = `choice-${count++}`;
  const node = make("select", { id }, ...entries.map(([entry, text]) => make("option", { value: entry }, text)));
  if (entries.some(([entry]) => entry === value)) node.value = value;
  return { node, box: make("div", {}, make("label", { for: id }, name), node) };
}
