// The server's routes, as this page uses them.

let key = sessionStorage.getItem("key") || "";

export function useKey(value) {
  key = value.trim();
  sessionStorage.setItem("key", key);
}

async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  const said = await reply.json().catch(() => ({}));
  if (reply.ok) return said;
  const wait = reply.headers.get("Retry-After");
  throw new Error((said.error?.message || `The server answered with status ${reply.status}.`) + (wait ? ` (wait ${wait} s)` : ""));
}

export const about = () => ask("page/about.json");
export const routes = () => ask("openapi.json");
export const model = async () => (await ask("v1/models")).data[0];
export const index = () => ask("v1/index");
export const search = (body) => ask("search", body);

const ranges = new Map();

async function rangesOf(task, dim) {
  const name = `${task} ${dim}`;
  if (!ranges.has(name)) ranges.set(name, await ask(`page/ranges.json?${new URLSearchParams({ task, dim })}`));
  return ranges.get(name);
}

const TYPES = { float32: "base64", int8: "int8", binary: "ubinary" };

/**
 * Embed texts as a setup says. Whatever the precision, the dot product of two of the vectors is the similarity that the
 * stored codes have: cosine, or 1 - 2 * Hamming distance / dimensions.
 */
export async function embed(texts, setup) {
  const body = { input: texts, dimensions: setup.dim, embedding_type: TYPES[setup.precision], truncate: true };
  if (setup.task !== "base") body.task = setup.task;
  if (setup.prompt) body.prompt_name = setup.prompt;
  const started = performance.now();
  const said = await ask("v1/embeddings", body);
  const ms = performance.now() - started;
  const codes = said.data.map((each) => each.embedding);
  let vectors;
  if (setup.precision === "float32") vectors = codes.map(floats);
  else if (setup.precision === "binary") vectors = codes.map((bytes) => signs(bytes, setup.dim));
  else vectors = await decoded(codes, setup);
  return { vectors, ms, tokens: said.usage.total_tokens };
}

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function signs(bytes, dim) {
  const size = 1 / Math.sqrt(dim);
  return Float32Array.from({ length: dim }, (_, i) => ((bytes[i >> 3] >> (7 - (i & 7))) & 1 ? size : -size));
}

async function decoded(codes, setup) {
  const { minimum, maximum } = await rangesOf(setup.task, setup.dim);
  return codes.map((row) => unit(Float32Array.from(row, (code, i) => ((code + 128) / 255) * (maximum[i] - minimum[i]) + minimum[i])));
}

export function unit(vector) {
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
}

export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

export function bytesPerVector(setup) {
  return { float32: 4 * setup.dim, int8: setup.dim, binary: Math.ceil(setup.dim / 8) }[setup.precision];
}
