// Tabs, and the three things to try.

import { about, index as describeIndex, model as describeModel, useKey } from "./api.js";
import * as compare from "./compare.js";
import { $, show } from "./dom.js";
import * as map from "./map.js";
import * as search from "./search.js";

const PANELS = { search, compare, map };
const runs = {};
const seen = new Set();

function open(name, focus = false) {
  for (const other of Object.keys(PANELS)) {
    const tab = $(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    $(other).hidden = other !== name;
    if (focus && other === name) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  if (runs[name] && !seen.has(name)) {
    seen.add(name);
    runs[name]().catch((error) => show(error.message));
  }
}

const names = Object.keys(PANELS);
names.forEach((name, at) => {
  const tab = $(`tab-${name}`);
  tab.addEventListener("click", () => open(name));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(names[(to + names.length) % names.length], true);
  });
});

async function start() {
  const { index: has, key } = await about();
  $("key-form").hidden = !key;
  const model = await describeModel();
  const index = has ? await describeIndex() : null;
  document.title = `${model.id} · taskdistill`;
  $("model-name").textContent = model.id;
  const tasks = model.tasks.length ? `tasks ${model.tasks.join(", ")}` : "no adapters";
  $("model-facts").textContent = `${model.embedding_dim} dimensions · ${tasks} · reads up to ${model.max_length.toLocaleString("en")} tokens`;
  for (const name of names) runs[name] = PANELS[name].setUp(model, index);
  show("");
  open(names.includes(location.hash.slice(1)) ? location.hash.slice(1) : "search");
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  start().catch((error) => show(error.message));
});

start().catch((error) => show(error.message));
