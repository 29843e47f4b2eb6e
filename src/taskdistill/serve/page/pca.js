// Principal components of a few hundred vectors, from the products between them.

import { dot } from "./api.js";

/**
 * Place vectors on the plane of their two largest principal components.
 * @returns {{places: number[][], share: number}} coordinates, and the share of the variance that they show
 */
export function plane(vectors) {
  const n = vectors.length;
  const mean = new Float64Array(vectors[0].length);
  for (const vector of vectors) for (let i = 0; i < mean.length; i++) mean[i] += vector[i] / n;
  const centred = vectors.map((vector) => Float64Array.from(vector, (value, i) => value - mean[i]));
  const products = centred.map((a) => Float64Array.from(centred, (b) => dot(a, b)));
  const total = products.reduce((sum, row, i) => sum + row[i], 0);
  const axes = [];
  for (let axis = 0; axis < 2; axis++) {
    const found = leading(products, axis);
    axes.push(found);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) products[i][j] -= found.value * found.vector[i] * found.vector[j];
  }
  const places = vectors.map((_, i) => axes.map(({ value, vector }) => Math.sqrt(Math.max(0, value)) * vector[i]));
  return { places, share: total > 0 ? axes.reduce((sum, { value }) => sum + value, 0) / total : 0 };
}

/** Power iteration from a fixed start, its sign fixed too, so that the same texts give the same picture. */
function leading(matrix, seed) {
  let vector = Float64Array.from(matrix, (_, i) => Math.sin(i * 1.7 + seed + 1));
  let value = 0;
  for (let turn = 0; turn < 200; turn++) {
    const next = Float64Array.from(matrix, (row) => dot(row, vector));
    const length = Math.hypot(...next);
    if (length < 1e-12) return { value: 0, vector: vector.fill(0) };
    const settled = Math.abs(length - value) < 1e-9 * length;
    value = length;
    vector = next.map((each) => each / length);
    if (settled && turn > 20) break;
  }
  const largest = vector.reduce((best, each) => (Math.abs(each) > Math.abs(best) ? each : best), 0);
  return { value, vector: largest < 0 ? vector.map((each) => -each) : vector };
}
