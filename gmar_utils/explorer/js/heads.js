// The L × H board of head weights, and where one patch looks.
import { checksum, highestFirst, isLight, minmax } from "./maths.js";
import { button, css, figure, h, legend, paint, patchAt, picture, place } from "./draw.js";

export function heads(view) {
  const { model, set } = view;
  const canvas = h("canvas", { tabindex: 0, role: "application", "aria-roledescription": "patch picker" });
  const look = picture();
  const lookCaption = h("span");
  const hint = h("p");
  const board = h("div", { class: "gmar-board", role: "group", "aria-label": "Head weights" });
  let solo = false;
  let shape = "";
  let hover = null;

  const modes = ["Mute", "Solo"].map((text, i) =>
    button(text, () => {
      solo = i === 1;
      view.schedule();
    }),
  );
  const reset = button("All heads", () => set({ muted: [] }));
  const isMuted = (l, k) => view.state.muted.some(([a, b]) => a === l && b === k);

  function press(l, k, alone) {
    const others = view.state.muted.filter(([a, b]) => a !== l || (!alone && b !== k));
    const rest = Array.from({ length: view.photo.H }, (_, i) => [l, i + 1]).filter(([, b]) => b !== k);
    const isAlone = !isMuted(l, k) && rest.every(([, b]) => isMuted(l, b));
    const now = alone ? (isAlone ? [] : rest) : isMuted(l, k) ? [] : [[l, k]];
    set({ muted: [...others, ...now].sort(([a, b], [c, d]) => a - c || b - d) });
  }

  function build({ L, H }) {
    const mute = (l, k) => (event) => press(l, k, solo || event.shiftKey);
    const label = (text) => h("span", { "aria-hidden": "true" }, text);
    const row = (n, cell) => Array.from({ length: n }, (_, i) => cell(i + 1));
    const head = (l, k) =>
      h("button", {
        type: "button",
        "data-head": `${l},${k}`,
        tabindex: l + k === 2 ? 0 : -1,
        onclick: mute(l, k),
      });
    board.style.gridTemplateColumns = `auto repeat(${H}, minmax(24px, 1fr))`;
    board.classList.toggle("gmar-dense", H > 8);
    board.replaceChildren(
      label("head"),
      ...row(H, label),
      ...row(L, (l) => [label(`layer ${l}`), ...row(H, (k) => head(l, k))]).flat(),
    );
  }

  board.addEventListener("keydown", (event) => {
    // arrows walk over the board: one tab stop in place of L × H
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const [l, k] = event.target.dataset.head?.split(",").map(Number) ?? [];
    const next = step && board.querySelector(`[data-head="${l + step[0]},${k + step[1]}"]`);
    if (step) event.preventDefault();
    if (!next) return;
    board.querySelectorAll("[tabindex='0']").forEach((b) => {
      b.tabIndex = -1;
    });
    next.tabIndex = 0;
    next.focus();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") return;
    hover = patchAt(event, view.photo);
    view.schedule();
  });
  canvas.addEventListener("pointerleave", () => {
    hover = null;
    view.schedule();
  });
  canvas.addEventListener("click", (event) => {
    const k = patchAt(event, view.photo);
    if (k !== null) set({ query: k === model.get("query") ? -1 : k });
  });
  canvas.addEventListener("keydown", (event) => {
    const { R, C } = view.photo;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: C, ArrowUp: -C }[event.key];
    const query = model.get("query");
    if (event.key === "Escape") set({ query: -1 });
    if (!step) return;
    event.preventDefault();
    const next = query < 0 ? 0 : query + step;
    const wraps = Math.abs(step) === 1 && query >= 0 && Math.floor(next / C) !== Math.floor(query / C);
    if (next >= 0 && next < R * C && !wraps) set({ query: next });
  });

  // The row of Â of a layer: of the chosen patch, or else of the tokens that the classifier reads.
  function attentionOf(photo, fused, layer, query) {
    const { N, R, C } = photo;
    const prefix = N - R * C;
    const row = new Float64Array(N);
    for (let i = 0; i < N; i++) {
      const share = query < 0 ? photo.readout[i] : +(i === prefix + query);
      if (share) for (let j = 0; j < N; j++) row[j] += share * fused[(layer * N + i) * N + j];
    }
    return row.subarray(prefix);
  }

  function showBoard({ L, H }, w) {
    const top = Math.max(...w);
    for (let l = 1; l <= L; l++) {
      const row = w.subarray((l - 1) * H, l * H);
      const on = [...row].filter((x) => x > 0);
      const high = Math.max(...on);
      const low = Math.min(...on);
      for (let k = 1; k <= H; k++) {
        const b = board.querySelector(`[data-head="${l},${k}"]`);
        const x = row[k - 1];
        const off = isMuted(l, k);
        const mark = off || high - low < 1e-6 ? "" : x === high ? "highest" : x === low ? "lowest" : "";
        b.style.background = off ? "" : css(x / top);
        b.style.color = isLight(x / top) ? "#000" : "#fff";
        b.textContent = off ? "×" : Math.round(100 * x);
        b.className = mark && `gmar-${mark}`;
        b.setAttribute("aria-pressed", off);
        b.setAttribute(
          "aria-label",
          `Layer ${l}, head ${k}: ${off ? "muted" : `weight ${Math.round(100 * x)} percent`}` +
            (mark && `, ${mark} of its layer`),
        );
      }
    }
    modes.forEach((b, i) => b.setAttribute("aria-pressed", solo === (i === 1)));
    reset.disabled = !view.state.muted.length;
  }

  function update() {
    const { photo, state } = view;
    const { fused, w } = view.heads();
    if (shape !== String(photo.shape)) build(photo);
    shape = String(photo.shape);
    const query = hover ?? Math.min(model.get("query"), photo.R * photo.C - 1);
    const opacity = model.get("opacity");
    const cursor = query < 0 ? null : query;
    paint(canvas, photo, state.map, opacity, { cursor });
    canvas.setAttribute(
      "aria-label",
      `Map of ${photo.name} for ${view.name()}. Arrow keys choose a patch, Escape lets go. ` +
        `${query < 0 ? "No patch chosen" : `Chosen: ${place(photo, query)}`}.`,
    );
    const layer = Math.min(model.get("look"), photo.L) - 1;
    const seen = attentionOf(photo, fused, layer, query);
    const best = highestFirst(seen)[0];
    paint(look, photo, minmax(seen), opacity);
    const who = query < 0 ? "the classifier’s token" : `the patch in ${place(photo, query)}`;
    lookCaption.textContent = `Where ${query < 0 ? "the classifier" : "this patch"} looks, layer ${layer + 1}`;
    look.setAttribute("aria-label", `In layer ${layer + 1}, ${who} looks most at ${place(photo, best)}.`);
    view.el.dataset.look = checksum(minmax(seen)).toFixed(7);
    hint.textContent =
      `${Math.round(100 * seen.reduce((a, b) => a + b, 0))} % of this token’s attention goes to patches, ` +
      `${Math.round(100 * seen[best])} % to the brightest one.`;
    showBoard(photo, w);
  }

  const pair = [figure(canvas, "Point at a patch", legend("low", "high")), figure(look, lookCaption)];
  const modesLabel = "What a press on a head does";
  return {
    update,
    el: h(
      "section",
      { class: "gmar-heads" },
      h("div", { class: "gmar-pair" }, ...pair),
      hint,
      h(
        "div",
        {},
        h("div", { class: "gmar-buttons", role: "group", "aria-label": modesLabel }, ...modes, reset),
        board,
        h(
          "p",
          { class: "gmar-key" },
          h("span", { class: "gmar-highest" }, "▲"),
          " highest of its layer  ",
          h("span", { class: "gmar-lowest" }, "▼"),
          " lowest of its layer. Numbers are percent.",
        ),
      ),
    ),
  };
}
