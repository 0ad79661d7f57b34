// The picture as a line of Python that repeats it.
import { NORMS, VARIANTS } from "./maths.js";

export const photoCode = (view) => `photos[${view.photo.key}]`;

export function stateCode(view, norm) {
  const { photo, state } = view;
  const muted = state.muted.map((pair) => `(${pair.join(", ")})`).join(", ");
  return (
    `gmar_utils.explorer.state_map(\n    vit, ${photoCode(view)}, target=${photo.targets[state.t]},\n` +
    `    norm=${NORMS[norm] ? JSON.stringify(NORMS[norm]) : "None"}, alpha=${+state.alpha.toFixed(4)}, ` +
    `variant="${VARIANTS[state.variant]}",\n` +
    `    layers=(${state.first}, ${state.last})${muted && `, muted=[${muted}]`},\n)`
  );
}

export const methodCode = (view, m, batch = false) =>
  `gmar_utils.explain(\n    vit.model, vit.preprocess([${photoCode(view)}]), ${view.photo.calls[m]},\n` +
  `    target=${view.photo.targets[view.state.t]}, upsample=False,\n)${batch ? "" : "[0]"}`;
