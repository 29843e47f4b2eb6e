// Small helpers for elements.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  return fill(node, properties, children);
}

export function makeSvg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export function show(problem) {
  const place = $("problem");
  place.hidden = !problem;
  place.textContent = problem || "";
}

/** Show what a thing costs: pairs of a name and a value. */
export function showCost(list, facts) {
  list.replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

const turns = new WeakMap();

/**
 * Run something slow with its button disabled and what it will replace dimmed; errors go to the alert. The work is told by `current()` whether a later one
 * has begun for the same form, so that a slow answer never replaces a newer one.
 */
export async function busy(form, work) {
  const turn = (turns.get(form) || 0) + 1;
  turns.set(form, turn);
  const current = () => turns.get(form) === turn;
  const button = form.querySelector("button.main");
  const panel = form.closest("section");
  button.disabled = true;
  panel.setAttribute("aria-busy", "true");
  show("");
  try {
    await work(current);
  } catch (error) {
    if (current()) show(error.message);
  } finally {
    if (current()) {
      button.disabled = false;
      panel.removeAttribute("aria-busy");
    }
  }
}

export const lines = (area) => area.value.split("\n").map((line) => line.trim()).filter(Boolean);

/** One tab stop for many cells or points; the arrow keys move between them. */
export function roving(nodes, step) {
  nodes.forEach((node, i) => {
    node.setAttribute("tabindex", i === 0 ? "0" : "-1");
    node.addEventListener("keydown", (event) => {
      const next = event.key.startsWith("Arrow") ? step(i, event.key.slice(5)) : null;
      if (next === null || next === undefined || !nodes[next]) return;
      event.preventDefault();
      node.setAttribute("tabindex", "-1");
      nodes[next].setAttribute("tabindex", "0");
      nodes[next].focus();
    });
  });
}
