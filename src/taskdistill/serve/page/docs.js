// The routes, written out from openapi.json.

import { routes } from "./api.js";
import { $, make, show } from "./dom.js";

const EXAMPLES = {
  "/v1/embeddings": { input: ["a text", "another"], prompt_name: "query", embedding_type: "float" },
  "/embed": { inputs: ["a text", "another"], truncate: true },
  "/search": { query: "what to look for", top_k: 5, filter: { lang: "en" } },
};

function kind(schema) {
  if (schema.anyOf) return schema.anyOf.map(kind).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (Array.isArray(schema.type)) return schema.type.join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items || {})}`;
  return schema.type || "any";
}

function fields(schema) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties).map(([name, each]) =>
    make("tr", {}, make("td", {}, make("code", {}, name), required.has(name) ? " (needed)" : ""), make("td", {}, kind(each)), make("td", {}, each.description || "")));
  const head = make("tr", {}, ...["Field", "Type", "Meaning"].map((name) => make("th", { scope: "col" }, name)));
  return make("div", { class: "scroll" }, make("table", { class: "data" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function route(path, method, said) {
  const parts = [make("h3", {}, make("code", {}, `${method.toUpperCase()} ${path}`)), make("p", {}, said.description || said.summary || "")];
  const schema = said.requestBody?.content?.["application/json"]?.schema;
  if (schema) parts.push(fields(schema));
  if (EXAMPLES[path]) {
    const address = new URL(path.slice(1), document.baseURI).href;
    parts.push(make("pre", {}, make("code", {}, `curl ${address} -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(EXAMPLES[path])}'`)));
  }
  return make("section", { class: "route" }, ...parts);
}

routes()
  .then(({ paths }) => {
    for (const [path, methods] of Object.entries(paths)) for (const [method, said] of Object.entries(methods)) $("routes").append(route(path, method, said));
  })
  .catch((error) => show(error.message));
