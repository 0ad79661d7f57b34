// From what the exported graph returns to maps: the methods that maths.js does not have. Pure functions, no DOM; the
// worker pastes this file behind maths.js, and both are loaded as modules elsewhere. Shapes: [L, H, N] as there.

// Head weights (2, L, H): L1 norms of ∂y/∂A, then L2 norms, each layer's divided by their sum; equal where all are 0.
export function headWeights(gradient, [L, H, N]) {
  const weights = new Float32Array(2 * L * H);
  for (let k = 0; k < L * H; k++) {
    let sum = 0;
    let squares = 0;
    for (let i = k * N * N; i < (k + 1) * N * N; i++) {
      sum += Math.abs(gradient[i]);
      squares += gradient[i] * gradient[i];
    }
    weights[k] = sum;
    weights[L * H + k] = Math.sqrt(squares);
  }
  for (let row = 0; row < 2 * L * H; row += H) {
    const total = weights.subarray(row, row + H).reduce((a, b) => a + b, 0);
    for (let h = row; h < row + H; h++) weights[h] = total ? weights[h] / total : 1 / H;
  }
  return weights;
}

// Gradient attention rollout: v ← v + v · mean_h ReLU(∂y/∂A ⊙ A), the last layer first.
export function gradientRollout(attention, gradient, readout, [L, H, N]) {
  const v = Float64Array.from(readout);
  for (let l = L - 1; l >= 0; l--) {
    const next = new Float64Array(N);
    for (let h = 0; h < H; h++)
      for (let i = 0; i < N; i++) {
        const row = ((l * H + h) * N + i) * N;
        if (v[i]) for (let j = 0; j < N; j++) next[j] += v[i] * Math.max(0, attention[row + j] * gradient[row + j]);
      }
    for (let j = 0; j < N; j++) v[j] += next[j] / H;
  }
  return v;
}

// The last layer's attention of the tokens that the classifier reads, mean over heads.
export function lastAttention(attention, readout, [L, H, N]) {
  const out = new Float64Array(N);
  for (let h = 0; h < H; h++)
    for (let i = 0; i < N; i++) {
      const row = (((L - 1) * H + h) * N + i) * N;
      if (readout[i]) for (let j = 0; j < N; j++) out[j] += (readout[i] * attention[row + j]) / H;
    }
  return out;
}

// Grad-CAM: channels weighted with their mean gradient over the patches, summed, ReLU.
export function gradCam(activation, gradient, N, prefix) {
  const D = activation.length / N;
  const weights = new Float64Array(D);
  for (let i = prefix; i < N; i++) for (let d = 0; d < D; d++) weights[d] += gradient[i * D + d] / (N - prefix);
  return Float64Array.from({ length: N }, (_, i) => {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += activation[i * D + d] * weights[d];
    return Math.max(0, sum);
  });
}

// LeGrad: the graph gives each layer's scores of the tokens; their mean over layers.
export function meanOverLayers(rows, L, N) {
  const out = new Float64Array(N);
  for (let k = 0; k < L * N; k++) out[k % N] += rows[k] / L;
  return out;
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Float64Array.from(logits, (x) => Math.exp(x - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}
