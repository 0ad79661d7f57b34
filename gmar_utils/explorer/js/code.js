// The picture as Python that repeats it.
import { NORMS, VARIANTS } from "./maths.js";

export const photoCode = (view) => view.photo.code ?? `photos[${view.photo.key}]`;

const number = (x) => String(+x.toFixed(4));
const norm = (n) => (NORMS[n] ? `"${NORMS[n]}"` : "None");
// On one line where a page shows it whole.
function explain(view, options) {
  const parts = [photoCode(view), options, `target=${view.photo.targets[view.state.t]}`];
  const line = `vit.explain(${parts.join(", ")})`;
  return line.length <= 72 ? line : `vit.explain(\n    ${parts.join(",\n    ")},\n)`;
}

// The map under the sliders: GMAR, unless heads or layers are taken out.
export function stateCode(view, n) {
  const { photo, state } = view;
  const muted = state.muted.map((pair) => `(${pair.join(", ")})`).join(", ");
  const options = `norm=${norm(n)}, alpha=${number(state.alpha)}, variant="${VARIANTS[state.variant]}"`;
  if (!muted && state.first === 1 && state.last === photo.L) return `${explain(view, `"gmar", ${options}`)}.map`;
  return (
    `gmar_utils.explorer.state_map(\n    vit, ${photoCode(view)}, ${options},\n` +
    `    target=${photo.targets[state.t]}, layers=(${state.first}, ${state.last})${muted && `, muted=[${muted}]`},\n)`
  );
}

// One of the methods, as an Explanation; at the α of the slider where the page draws it at that α.
export const methodCode = (view, m, alpha = null) =>
  explain(view, view.photo.calls[m] + (alpha === null ? "" : `, alpha=${number(alpha)}`));
