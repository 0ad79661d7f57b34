// The view behind gmar_utils.explorer: one ES module, the same in Jupyter, on Colab and in the static book (anywidget).
// Every number of a map is computed here from the photo's attention, so that no kernel and no network is needed.

const NORMS = ["l1", "l2", null],
  NORM_NAMES = ["L1", "L2", "no head weights"];
const VARIANTS = ["paper", "report", "output-first"];

// ---------------------------------------------------------------------------------------------- numbers (no DOM)

// One byte q an entry, stored as the difference to the entry above, and each row scaled to its own maximum. Rows of
// attention sum to 1, which gives the scale back: a = q^1.5 / Σ q^1.5.
function dequantise(stored, N) {
  const q = Uint8Array.from(stored),
    a = new Float32Array(q.length);
  for (let row = 0; row < q.length; row += N) {
    if (row % (N * N)) for (let j = row; j < row + N; j++) q[j] += q[j - N];
    let sum = 0;
    for (let j = row; j < row + N; j++) sum += a[j] = q[j] * Math.sqrt(q[j]);
    for (let j = row; j < row + N; j++) a[j] /= sum;
  }
  return a;
}

// Head weights with the muted heads at 0 and the others of a layer summing to 1. A layer without heads is not active.
function mute(weights, L, H, muted) {
  const w = Float64Array.from(weights),
    active = [];
  for (const [layer, head] of muted) w[(layer - 1) * H + head - 1] = 0;
  for (let l = 0; l < L; l++) {
    let sum = 0;
    for (let h = 0; h < H; h++) sum += w[l * H + h];
    for (let h = 0; h < H; h++) w[l * H + h] /= sum || 1;
    active.push(sum > 0);
  }
  return { w, active };
}

// Â of every layer: the heads' attention added up with their weights.
function fuse(a, [L, H, N], w) {
  const fused = new Float64Array(L * N * N);
  for (let l = 0; l < L; l++)
    for (let h = 0; h < H; h++) {
      const weight = w[l * H + h],
        from = (l * H + h) * N * N,
        to = l * N * N;
      if (weight) for (let k = 0; k < N * N; k++) fused[to + k] += weight * a[from + k];
    }
  return fused;
}

// Token scores, the row v₀ carried through the layers; see weighted_rollout in rollout.py for what the variants mean.
function rollout(fused, N, layers, readout, alpha, variant) {
  let v = Float64Array.from(readout);
  for (const l of variant === "output-first" ? [...layers].reverse() : layers) {
    const next = new Float64Array(N),
      residual = variant === "paper" ? readout : v;
    for (let i = 0; i < N; i++)
      if (v[i]) {
        const row = (l * N + i) * N;
        for (let j = 0; j < N; j++) next[j] += v[i] * fused[row + j];
      }
    for (let j = 0; j < N; j++) next[j] += alpha * residual[j];
    v = next;
  }
  return v;
}

function minmax(values) {
  const low = Math.min(...values),
    range = Math.max(...values) - low;
  return Float64Array.from(values, (x) => (range > 0 ? (x - low) / range : 0));
}

// Where a map lies, as one number: tests compare it with NumPy's.
const checksum = (m) => m.reduce((s, x, k) => s + x * (k + 1), 0) / ((m.length * (m.length + 1)) / 2);

// A probability in percent, small ones with more digits; the sign stays on its number's line.
const percent = (p) => `${(100 * p).toFixed(p < 0.0095 ? 2 : p < 0.095 ? 1 : 0)}\u00a0%`;

const highestFirst = (m) => [...m.keys()].sort((i, j) => m[j] - m[i] || i - j);

// ---------------------------------------------------------------------------------------------- drawing

function h(tag, attributes = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) el.setAttribute(name, value);
  }
  el.append(...children);
  return el;
}

function svg(tag, attributes, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

function sheet(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

function positions(n, cells) {
  // bilinear, align_corners=False: left cell and how far towards the next
  return Array.from({ length: n }, (_, i) => {
    const x = Math.min(Math.max(((i + 0.5) * cells) / n - 0.5, 0), cells - 1),
      left = Math.min(Math.floor(x), Math.max(cells - 2, 0));
    return [left, x - left];
  });
}

// An (R, C) map as w × height values.
function enlarge(map, [R, C], w, height) {
  const xs = positions(w, C),
    ys = positions(height, R),
    out = new Float32Array(w * height),
    right = C > 1 ? 1 : 0,
    below = R > 1 ? C : 0;
  let k = 0;
  for (const [r, fy] of ys)
    for (const [c, fx] of xs) {
      const i = r * C + c,
        top = map[i] + fx * (map[i + right] - map[i]),
        bottom = map[i + below] + fx * (map[i + below + right] - map[i + below]);
      out[k++] = top + fy * (bottom - top);
    }
  return out;
}

// An (R, C) map as a picture of w × h pixels; colour(value) writes four bytes.
function colourMap(map, grid, w, height, colour) {
  const canvas = sheet(w, height),
    context = canvas.getContext("2d"),
    image = context.createImageData(w, height);
  enlarge(map, grid, w, height).forEach((v, k) => colour(v, image.data, 4 * k));
  context.putImageData(image, 0, 0);
  return canvas;
}

// Where the map crosses one half, as line segments in units of patches (marching squares on a grid four times as fine).
function contour([R, C], map, line) {
  const rows = 4 * R,
    columns = 4 * C,
    fine = enlarge(map, [R, C], columns, rows).map((v) => v - 0.5);
  for (let y = 0; y + 1 < rows; y++)
    for (let x = 0; x + 1 < columns; x++) {
      const corners = [
          [x, y],
          [x + 1, y],
          [x + 1, y + 1],
          [x, y + 1],
        ],
        ends = [];
      for (let k = 0; k < 4; k++) {
        const [ax, ay] = corners[k],
          [bx, by] = corners[(k + 1) % 4],
          a = fine[ay * columns + ax],
          b = fine[by * columns + bx];
        if (a > 0 !== b > 0)
          ends.push([(ax + ((bx - ax) * a) / (a - b) + 0.5) / 4, (ay + ((by - ay) * a) / (a - b) + 0.5) / 4]);
      }
      for (let k = 0; k + 1 < ends.length; k += 2) line(...ends[k], ...ends[k + 1]);
    }
}

// ---------------------------------------------------------------------------------------------- one photo's data

const bytes = (v) => new Uint8Array(v.buffer, v.byteOffset, v.byteLength);
const inflated = async (v) =>
  new Response(new Blob([bytes(v)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
const floats = (v) => new Float32Array(bytes(v).slice().buffer); // slice: a copy starts at a multiple of four

async function unpack(model) {
  const info = model.get("info"),
    [L, H, N] = info.shape,
    [R, C] = info.grid;
  const colour = await createImageBitmap(new Blob([bytes(model.get("image"))], { type: "image/jpeg" }));
  const grey = sheet(colour.width, colour.height),
    context = grey.getContext("2d");
  context.drawImage(colour, 0, 0);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, grey.width, grey.height);
  const weights = floats(model.get("weights")),
    maps = floats(model.get("maps")),
    curves = floats(model.get("curves"));
  const M = info.methods.length,
    S = info.fractions.length;
  return {
    ...info,
    L,
    H,
    N,
    R,
    C,
    colour,
    grey,
    attention: dequantise(new Uint8Array(await inflated(model.get("attention"))), N),
    readout: floats(model.get("readout")),
    weights: (t, norm) =>
      norm < 2
        ? weights.subarray((t * 2 + norm) * L * H, (t * 2 + norm + 1) * L * H)
        : new Float32Array(L * H).fill(1 / H),
    map: (t, m) => maps.subarray((t * M + m) * R * C, (t * M + m + 1) * R * C),
    curve: (t, m) => curves.subarray((t * M + m) * S, (t * M + m + 1) * S),
    box: [
      info.crop[0] * colour.width,
      info.crop[1] * colour.height,
      info.crop[2] * colour.width,
      info.crop[3] * colour.height,
    ],
  };
}

// ---------------------------------------------------------------------------------------------- the view

export async function render({ model, el }) {
  const photos = await Promise.all(
    model.get("photos").map(async (id) => unpack(await model.widget_manager.get_model(id.replace("IPY_MODEL_", "")))),
  );
  const magma = bytes(model.get("magma")),
    show = model.get("show"),
    cleanups = [];
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const listen = (target, type, handler) => {
    target.addEventListener(type, handler);
    cleanups.push(() => target.removeEventListener(type, handler));
  };
  const set = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };

  // --- the state: what the sliders say, and the map that follows
  let cache = {},
    photo,
    state;
  function compute() {
    const index = Math.min(model.get("photo"), photos.length - 1);
    photo = photos[index];
    const t = Math.min(model.get("target"), photo.targets.length - 1),
      norm = model.get("norm"),
      muted = model.get("muted");
    const key = JSON.stringify([index, t, norm, muted]);
    if (cache.key !== key) {
      const given = photo.weights(t, norm),
        { w, active } = mute(given, photo.L, photo.H, muted);
      const even = mute(photo.weights(t, 2), photo.L, photo.H, muted).w;
      cache = {
        key,
        given,
        w,
        active,
        fused: fuse(photo.attention, photo.shape, w),
        even: () => (cache.evenly ??= fuse(photo.attention, photo.shape, even)),
      };
    }
    const [first, last] = model.get("layers"),
      alpha = model.get("alpha"),
      variant = VARIANTS[model.get("variant")];
    const layers = [...cache.active.keys()].filter((l) => cache.active[l] && l + 1 >= first && l + 1 <= last);
    const mapOf = (fused) =>
      minmax(rollout(fused, photo.N, layers, photo.readout, alpha, variant).subarray(photo.N - photo.R * photo.C));
    state = { t, norm, muted, alpha, variant, first, last, mapOf, map: mapOf(cache.fused) };
  }

  // --- pictures of a map on the grey photo
  const ramp = (v, data, k) => {
    const c = 3 * Math.round(255 * v);
    data[k] = magma[c];
    data[k + 1] = magma[c + 1];
    data[k + 2] = magma[c + 2];
    data[k + 3] = 255;
  };
  const css = (v) => {
    const c = 3 * Math.round(255 * v);
    return `rgb(${magma[c]},${magma[c + 1]},${magma[c + 2]})`;
  };
  const linear = (x) => ((x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const isLight = (v) => {
    const c = 3 * Math.round(255 * v);
    return 0.2126 * linear(magma[c]) + 0.7152 * linear(magma[c + 1]) + 0.0722 * linear(magma[c + 2]) > 0.179;
  };
  const gradient = `linear-gradient(to right, ${Array.from({ length: 9 }, (_, i) => css(i / 8)).join(", ")})`;
  function paint(canvas, map, colour = ramp) {
    const { width, height } = photo.colour,
      [x0, y0, x1, y1] = photo.box;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d"),
      w = Math.round((x1 - x0) / 2),
      hh = Math.round((y1 - y0) / 2);
    context.drawImage(photo.grey, 0, 0);
    context.globalAlpha = model.get("opacity");
    context.drawImage(colourMap(map, photo.grid, w, hh, colour), x0, y0, x1 - x0, y1 - y0);
    context.globalAlpha = 1;
    if (colour === ramp) {
      const sx = (x1 - x0) / photo.C,
        sy = (y1 - y0) / photo.R;
      context.beginPath();
      contour(photo.grid, map, (ax, ay, bx, by) => {
        context.moveTo(x0 + sx * ax, y0 + sy * ay);
        context.lineTo(x0 + sx * bx, y0 + sy * by);
      });
      context.strokeStyle = "#fff";
      context.lineWidth = 1.5;
      context.lineCap = "round";
      context.stroke();
    }
    if (canvas.dataset.cursor) frame(context, +canvas.dataset.cursor);
  }
  function cell(k) {
    const [x0, y0, x1, y1] = photo.box,
      w = (x1 - x0) / photo.C,
      hh = (y1 - y0) / photo.R;
    return [x0 + w * (k % photo.C), y0 + hh * Math.floor(k / photo.C), w, hh];
  }
  function frame(context, k) {
    for (const [style, line] of [
      ["#000", 5],
      ["#fff", 2],
    ]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.strokeRect(...cell(k));
    }
  }
  const place = (k) => `row ${Math.floor(k / photo.C) + 1} of ${photo.R}, column ${(k % photo.C) + 1} of ${photo.C}`;
  const figure = (canvas, ...caption) => h("figure", {}, canvas, h("figcaption", {}, ...caption));
  const picture = () => h("canvas", { role: "img" });
  const name = () => photo.target_names[state.t];
  const settings = () => `${NORM_NAMES[state.norm]}, α = ${state.alpha.toFixed(2)}, ${state.variant}`;
  const legend = (low, high, background = gradient) =>
    h("div", { class: "gmar-legend" }, low, h("span", { class: "gmar-ramp", style: `background:${background}` }), high);

  const panels = {
    // The map under the sliders, and buttons for the settings worth a look.
    map() {
      const canvas = picture(),
        caption = h("span"),
        say = h("p");
      const presets = model.get("presets"),
        buttons = presets.map((p) => h("button", { type: "button", onclick: () => set(p.state) }, p.label));
      const update = () => {
        paint(canvas, state.map);
        canvas.setAttribute(
          "aria-label",
          `Map of ${photo.name} for ${name()}: ${settings()}. Strongest patch: ${place(highestFirst(state.map)[0])}.`,
        );
        caption.textContent = `Why ${name().replace(/ [\d.]+ %$/, "")}?`;
        let now = null;
        presets.forEach((p, i) => {
          const on = Object.entries(p.state).every(([trait, value]) => model.get(trait) === value);
          buttons[i].setAttribute("aria-pressed", on);
          if (on) now = p;
        });
        say.textContent = now ? now.say : "Your own setting. The buttons above bring you back to known places.";
      };
      return {
        update,
        el: h(
          "section",
          { class: "gmar-map" },
          figure(canvas, caption, legend("low", "high")),
          h(
            "div",
            {},
            h("div", { class: "gmar-buttons", role: "group", "aria-label": "Settings worth a look" }, ...buttons),
            say,
          ),
        ),
      };
    },

    // The L × H board of head weights, and where one patch looks.
    heads() {
      const canvas = h("canvas", { tabindex: 0, role: "application", "aria-roledescription": "patch picker" }),
        look = picture();
      const board = h("div", { class: "gmar-board", role: "group", "aria-label": "Head weights" });
      const lookCaption = h("span"),
        hint = h("p");
      let solo = false,
        shape = "",
        hover = null;
      const modes = ["Mute", "Solo"].map((text, i) =>
        h(
          "button",
          {
            type: "button",
            onclick: () => {
              solo = i === 1;
              schedule();
            },
          },
          text,
        ),
      );
      const reset = h("button", { type: "button", onclick: () => set({ muted: [] }) }, "All heads");
      const isMuted = (l, k) => state.muted.some(([a, b]) => a === l && b === k);
      const press = (l, k, alone) => {
        const others = state.muted.filter(([a, b]) => a !== l || (!alone && b !== k));
        const rest = Array.from({ length: photo.H }, (_, i) => [l, i + 1]).filter(([, b]) => b !== k);
        const isAlone = !isMuted(l, k) && rest.every(([, b]) => isMuted(l, b));
        const now = alone ? (isAlone ? [] : rest) : isMuted(l, k) ? [] : [[l, k]];
        set({ muted: [...others, ...now].sort(([a, b], [c, d]) => a - c || b - d) });
      };
      const build = () => {
        shape = [photo.L, photo.H].join();
        board.style.gridTemplateColumns = `auto repeat(${photo.H}, minmax(24px, 1fr))`;
        board.classList.toggle("gmar-dense", photo.H > 8);
        board.replaceChildren(
          h("span", { "aria-hidden": "true" }, "head"),
          ...Array.from({ length: photo.H }, (_, i) => h("span", { "aria-hidden": "true" }, i + 1)),
        );
        for (let l = 1; l <= photo.L; l++) {
          board.append(h("span", { "aria-hidden": "true" }, `layer ${l}`));
          for (let k = 1; k <= photo.H; k++)
            board.append(
              h("button", {
                type: "button",
                "data-head": `${l},${k}`,
                tabindex: l + k === 2 ? 0 : -1,
                onclick: (event) => press(l, k, solo || event.shiftKey),
              }),
            );
        }
      };
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
      const at = (event) => {
        const r = canvas.getBoundingClientRect(),
          [x0, y0, x1, y1] = photo.box;
        const x = ((event.clientX - r.left) / r.width) * photo.colour.width,
          y = ((event.clientY - r.top) / r.height) * photo.colour.height;
        const c = Math.floor(((x - x0) / (x1 - x0)) * photo.C),
          row = Math.floor(((y - y0) / (y1 - y0)) * photo.R);
        return c >= 0 && c < photo.C && row >= 0 && row < photo.R ? row * photo.C + c : null;
      };
      canvas.addEventListener("pointermove", (event) => {
        if (event.pointerType === "mouse") {
          hover = at(event);
          schedule();
        }
      });
      canvas.addEventListener("pointerleave", () => {
        hover = null;
        schedule();
      });
      canvas.addEventListener("click", (event) => {
        const k = at(event);
        if (k !== null) set({ query: k === model.get("query") ? -1 : k });
      });
      canvas.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: photo.C, ArrowUp: -photo.C }[event.key],
          query = model.get("query");
        if (event.key === "Escape") set({ query: -1 });
        if (!step) return;
        event.preventDefault();
        const next = query < 0 ? 0 : query + step;
        const wraps = Math.abs(step) === 1 && query >= 0 && Math.floor(next / photo.C) !== Math.floor(query / photo.C);
        if (next >= 0 && next < photo.R * photo.C && !wraps) set({ query: next });
      });
      const update = () => {
        if (shape !== [photo.L, photo.H].join()) build();
        const query = hover ?? Math.min(model.get("query"), photo.R * photo.C - 1);
        if (query >= 0) canvas.dataset.cursor = query;
        else delete canvas.dataset.cursor;
        paint(canvas, state.map);
        canvas.setAttribute(
          "aria-label",
          `Map of ${photo.name} for ${name()}. Arrow keys choose a patch, Escape lets go. ` +
            `${query < 0 ? "No patch chosen" : `Chosen: ${place(query)}`}.`,
        );
        // the row of Â of the chosen layer: of the chosen patch, or else of the tokens that the classifier reads
        const layer = Math.min(model.get("look"), photo.L) - 1,
          prefix = photo.N - photo.R * photo.C,
          row = new Float64Array(photo.N);
        for (let i = 0; i < photo.N; i++) {
          const share = query < 0 ? photo.readout[i] : +(i === prefix + query);
          if (share)
            for (let j = 0; j < photo.N; j++) row[j] += share * cache.fused[(layer * photo.N + i) * photo.N + j];
        }
        const seen = row.subarray(prefix),
          best = highestFirst(seen)[0],
          onPatches = seen.reduce((a, b) => a + b, 0);
        paint(look, minmax(seen));
        const who = query < 0 ? "the classifier’s token" : `the patch in ${place(query)}`;
        lookCaption.textContent = `Where ${query < 0 ? "the classifier" : "this patch"} looks, layer ${layer + 1}`;
        look.setAttribute("aria-label", `In layer ${layer + 1}, ${who} looks most at ${place(best)}.`);
        el.dataset.look = checksum(minmax(seen)).toFixed(7);
        hint.textContent =
          `${Math.round(100 * onPatches)} % of this token’s attention goes to patches, ` +
          `${Math.round(100 * seen[best])} % to the brightest one.`;
        const top = Math.max(...cache.w);
        for (let l = 1; l <= photo.L; l++) {
          const row = cache.w.subarray((l - 1) * photo.H, l * photo.H),
            on = [...row].filter((x) => x > 0),
            high = Math.max(...on),
            low = Math.min(...on);
          for (let k = 1; k <= photo.H; k++) {
            const b = board.querySelector(`[data-head="${l},${k}"]`),
              x = row[k - 1],
              off = isMuted(l, k);
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
        reset.disabled = !state.muted.length;
      };
      return {
        update,
        el: h(
          "section",
          { class: "gmar-heads" },
          h(
            "div",
            { class: "gmar-pair" },
            figure(canvas, "Point at a patch", legend("low", "high")),
            figure(look, lookCaption),
          ),
          hint,
          h(
            "div",
            {},
            h(
              "div",
              { class: "gmar-buttons", role: "group", "aria-label": "What a press on a head does" },
              ...modes,
              reset,
            ),
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
    },

    // Two maps, what differs, and one laid over the other.
    compare() {
      const canvases = [picture(), picture(), picture(), picture()],
        [left, right, difference, under] = canvases;
      const captions = [h("span"), h("span"), h("span")],
        scale = [h("span"), h("span")];
      const over = h("div", { class: "gmar-over" }, h("canvas", { "aria-hidden": "true" })),
        topLeft = over.firstChild;
      const swipe = h("input", {
        type: "range",
        min: 0,
        max: 100,
        value: 50,
        "aria-label": "Swipe between the two maps",
      });
      const bar = h("span", { class: "gmar-bar" });
      let words = "";
      swipe.addEventListener("input", () => schedule());
      const chosen = (i) =>
        i === 0 ? state.map : i === 1 ? state.mapOf(cache.even()) : Float64Array.from(photo.map(state.t, i - 2));
      const label = (i) => model.get("choices")[i];
      const update = () => {
        const ids = [model.get("left"), model.get("right")],
          maps = ids.map(chosen),
          d = maps[1].map((x, k) => x - maps[0][k]);
        const most = Math.max(...d.map(Math.abs)),
          unit = most || 1;
        paint(left, maps[0]);
        paint(right, maps[1]);
        paint(under, maps[1]);
        paint(topLeft, maps[0]);
        // blue: the left map is stronger, orange: the right one is; as strong as the difference
        paint(
          difference,
          d.map((x) => (x / unit + 1) / 2),
          (v, data, k) => {
            const x = 2 * v - 1;
            data.set(x < 0 ? [70, 150, 255, -255 * x] : [255, 150, 30, 255 * x], k);
          },
        );
        const strongest = maps.map((m) => place(highestFirst(m)[0]));
        ids.forEach((i, n) => {
          captions[n].textContent = label(i);
          canvases[n].setAttribute("aria-label", `${label(i)}, strongest patch ${strongest[n]}`);
        });
        captions[2].textContent = "Difference";
        scale[0].textContent = `left +${most.toFixed(2)}`;
        scale[1].textContent = `right +${most.toFixed(2)}`;
        const furthest = `Largest difference ${most.toFixed(2)}: ${place(highestFirst(d.map(Math.abs))[0])}.`;
        difference.setAttribute("aria-label", `Right minus left. ${furthest}`);
        words = `Strongest patch: left ${strongest[0]}; right ${strongest[1]}. ${furthest}`;
        under.setAttribute("aria-label", `${label(ids[0])} left of the handle, ${label(ids[1])} right of it`);
        topLeft.style.clipPath = `inset(0 ${100 - swipe.value}% 0 0)`;
        bar.style.left = `${swipe.value}%`;
        el.dataset.left = checksum(maps[0]).toFixed(7);
        el.dataset.right = checksum(maps[1]).toFixed(7);
        el.dataset.difference = most.toFixed(7);
      };
      over.prepend(under);
      over.append(bar, swipe);
      const code = () =>
        `left = ${choiceCode(model.get("left"))}\nright = ${choiceCode(model.get("right"))}\ndifference = right - left`;
      return {
        update,
        code,
        say: () => words,
        el: h(
          "section",
          { class: "gmar-compare" },
          figure(left, captions[0]),
          figure(right, captions[1]),
          figure(
            difference,
            captions[2],
            legend(scale[0], scale[1], "linear-gradient(to right, #4696ff, #8888, #ff961e)"),
          ),
          h("figure", {}, over, h("figcaption", {}, "Swipe: left map, right map")),
        ),
      };
    },

    // Patches vanish in the order of a map, and the probability falls.
    deletion() {
      const canvas = picture(),
        caption = h("span"),
        W = 320,
        Hh = 200,
        pad = { l: 46, r: 10, t: 10, b: 34 };
      const chart = svg("svg", { viewBox: `0 0 ${W} ${Hh}`, role: "img", class: "gmar-chart" });
      const play = h("button", { type: "button" }, "Play"),
        key = h("ul", { class: "gmar-curves", role: "list" });
      const hint = "Area under each curve, in percent. Lower means that the map found the patches that matter.";
      // two methods that share a colour (GMAR with two norms): the second one's line is dashed
      const line = (i, points, width) =>
        svg("polyline", {
          points,
          fill: "none",
          stroke: photo.colours[i],
          "stroke-width": width,
          "stroke-dasharray": photo.colours.indexOf(photo.colours[i]) < i ? "5 3" : "none",
        });
      const area = (c) => (100 * c.reduce((s, p, k) => s + p * (k % steps() ? 1 : 0.5), 0)) / steps();
      let timer = null;
      const stop = () => {
        clearInterval(timer);
        timer = null;
        schedule();
      };
      const steps = () => photo.fractions.length - 1;
      const start = () => {
        if (model.get("step") >= steps()) set({ step: 0 });
        timer = setInterval(() => {
          // on a busy machine the event 'change' below comes several steps late
          if (calm.matches || model.get("step") >= steps()) stop();
          else set({ step: model.get("step") + 1 });
        }, 150);
        schedule();
      };
      play.addEventListener("click", () => (timer ? stop() : start()));
      listen(calm, "change", () => {
        if (calm.matches) stop();
        schedule();
      });
      cleanups.push(() => clearInterval(timer));
      const drag = (event) => {
        if (event.type === "pointermove" && !event.buttons) return;
        const r = chart.getBoundingClientRect(),
          x = ((event.clientX - r.left) / r.width) * W;
        set({ step: Math.max(0, Math.min(steps(), Math.round(((x - pad.l) / (W - pad.l - pad.r)) * steps()))) });
      };
      chart.addEventListener("pointerdown", (event) => {
        chart.setPointerCapture(event.pointerId);
        drag(event);
      });
      chart.addEventListener("pointermove", drag);
      const update = () => {
        const m = model.get("method"),
          S = steps(),
          step = Math.min(model.get("step"), S),
          curve = photo.curve(state.t, m),
          patches = photo.R * photo.C;
        const gone = Math.round(photo.fractions[step] * patches),
          context = canvas.getContext("2d");
        canvas.width = photo.colour.width;
        canvas.height = photo.colour.height;
        context.drawImage(photo.colour, 0, 0);
        context.fillStyle = `rgb(${photo.fill.join()})`;
        for (const k of highestFirst(photo.map(state.t, m)).slice(0, gone)) {
          const [x, y, w, hh] = cell(k);
          context.fillRect(x - 0.5, y - 0.5, w + 1, hh + 1);
        }
        const top = Math.max(...photo.methods.flatMap((_, i) => [...photo.curve(state.t, i)]));
        const x = (s) => pad.l + (s / S) * (W - pad.l - pad.r),
          y = (p) => Hh - pad.b - (p / top) * (Hh - pad.t - pad.b);
        const points = (i) =>
          [...photo.curve(state.t, i)].map((p, s) => `${x(s).toFixed(1)},${y(p).toFixed(1)}`).join(" ");
        const text = (tx, ty, anchor, words) => svg("text", { x: tx, y: ty, "text-anchor": anchor }, words);
        chart.replaceChildren(
          svg("path", { d: `M${pad.l} ${pad.t}V${Hh - pad.b}H${W - pad.r}`, class: "gmar-axis" }),
          svg("polygon", { points: `${x(0)},${y(0)} ${points(m)} ${x(S)},${y(0)}`, fill: photo.colours[m], opacity: 0.2 }),
          ...[...photo.methods.keys()].filter((i) => i !== m).map((i) => line(i, points(i), 1.5)),
          line(m, points(m), 3.5),
          svg("path", { d: `M${x(step)} ${pad.t}V${Hh - pad.b}`, class: "gmar-axis" }),
          svg("circle", { cx: x(step), cy: y(curve[step]), r: 6, fill: photo.colours[m], class: "gmar-dot" }),
          text(pad.l - 5, y(0), "end", "0"),
          text(pad.l - 5, y(top) + 4, "end", percent(top)),
          text(pad.l, Hh - pad.b + 14, "start", "0"),
          text(W - pad.r, Hh - pad.b + 14, "end", "100 %"),
          text((W + pad.l) / 2, Hh - 4, "middle", "patches removed"),
        );
        const share = Math.round((100 * gone) / patches);
        const fact = `${share}\u00a0% of the patches removed: probability ${percent(curve[step])}`;
        caption.textContent = fact;
        canvas.setAttribute("aria-label", `${photo.name}, ${fact}`);
        chart.setAttribute("aria-label", `Deletion curve of ${photo.methods[m]} for ${name()}. ${fact}.`);
        key.replaceChildren(
          ...photo.methods.map((name, i) =>
            h(
              "li",
              { "aria-current": i === m ? "true" : null },
              svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, line(i, "0,4 24,4", i === m ? 3.5 : 2)),
              `${name} ${area(photo.curve(state.t, i)).toFixed(1)}`,
            ),
          ),
        );
        play.hidden = calm.matches;
        play.textContent = timer ? "Pause" : "Play";
        el.dataset.probability = curve[step].toFixed(7);
        el.dataset.removed = gone;
      };
      const code = () =>
        `maps = ${methodCode(model.get("method"), true)}\ncurve = gmar_utils.metrics.deletion(\n` +
        `    vit.model, vit.preprocess([${where()}]), maps, target=${photo.targets[state.t]}, ` +
        `steps=${photo.fractions.length - 1},\n)`;
      const say = () =>
        `${name().replace(/ [\d.]+ %$/, "")}, order by ${photo.methods[model.get("method")]}. ${caption.textContent}.`;
      return {
        update,
        code,
        say,
        el: h(
          "section",
          { class: "gmar-deletion" },
          figure(canvas, caption),
          h(
            "div",
            {},
            chart,
            h("div", { class: "gmar-buttons" }, play),
            key,
            h("p", { class: "gmar-key" }, hint),
          ),
        ),
      };
    },
  };

  // --- the picture as code
  const code = h("code"),
    copied = h("span", { role: "status" });
  const copy = h(
    "button",
    {
      type: "button",
      onclick: () =>
        navigator.clipboard?.writeText(code.textContent).then(
          () => {
            copied.textContent = "Copied.";
          },
          () => {
            copied.textContent = "Select the text and copy it.";
          },
        ),
    },
    "Copy",
  );
  const where = () => `photos[${photo.key}]`;
  function stateCode(norm) {
    const py = JSON.stringify,
      muted = state.muted.map((pair) => `(${pair.join(", ")})`).join(", ");
    return (
      `gmar_utils.explorer.state_map(\n    vit, ${where()}, target=${photo.targets[state.t]},\n` +
      `    norm=${NORMS[norm] ? py(NORMS[norm]) : "None"}, alpha=${+state.alpha.toFixed(4)}, ` +
      `variant=${py(state.variant)},\n` +
      `    layers=(${state.first}, ${state.last})${muted && `, muted=[${muted}]`},\n)`
    );
  }
  const methodCode = (m, batch) =>
    `gmar_utils.explain(\n    vit.model, vit.preprocess([${where()}]), ${photo.calls[m]},\n` +
    `    target=${photo.targets[state.t]}, upsample=False,\n)${batch ? "" : "[0]"}`;
  const choiceCode = (i) => (i === 0 ? stateCode(state.norm) : i === 1 ? stateCode(2) : methodCode(i - 2));

  // --- put together
  const parts = show.map((panel) => panels[panel]()),
    last = parts.at(-1);
  const live = h("p", { class: "gmar-live", "aria-live": "polite", role: "status" }),
    note = h("p", { class: "gmar-note" });
  el.classList.add("gmar");
  el.replaceChildren(
    ...parts.map((p) => p.el),
    live,
    h(
      "details",
      { class: "gmar-code" },
      h("summary", {}, "As code"),
      h("pre", { tabindex: 0 }, code),
      h("div", { class: "gmar-buttons" }, copy, copied),
    ),
    note,
  );

  let waiting = 0,
    speaking = 0;
  function draw() {
    waiting = 0;
    const began = performance.now();
    compute();
    if (model.get("target_names").join() !== photo.target_names.join())
      set({ target_names: photo.target_names, target: 0 });
    for (const part of parts) part.update();
    code.textContent = `${last.code?.() ?? `map = ${stateCode(state.norm)}`}\n`;
    copied.textContent = "";
    const best = highestFirst(state.map)[0];
    note.textContent =
      last.code === undefined
        ? "The page keeps attention in one byte an entry. That moves these maps by at most " +
          `${(100 * photo.error).toFixed(1)} % of their range.`
        : "";
    el.dataset.checksum = checksum(state.map).toFixed(7);
    el.dataset.ms = (performance.now() - began).toFixed(2);
    const words = last.say?.() ?? `Strongest patch: ${place(best)}. ${name()}; ${settings()}.`;
    clearTimeout(speaking); // speak when the hand rests, not at every step of a drag
    speaking = setTimeout(
      () => {
        if (live.textContent !== words) live.textContent = words;
      },
      live.textContent ? 400 : 0,
    );
  }
  function schedule() {
    waiting ||= requestAnimationFrame(draw);
  }

  for (const trait of [
    "photo",
    "target",
    "norm",
    "variant",
    "alpha",
    "layers",
    "opacity",
    "muted",
    "query",
    "look",
    "left",
    "right",
    "method",
    "step",
  ]) {
    model.on(`change:${trait}`, schedule);
    cleanups.push(() => model.off(`change:${trait}`, schedule));
  }
  draw();
  cleanups.push(nameHandles(el));
  return () => {
    cancelAnimationFrame(waiting);
    clearTimeout(speaking);
    cleanups.forEach((f) => f());
  };
}

// The handles of ipywidgets' sliders have no accessible name: give each its label's, as soon as it is there.
function nameHandles(el) {
  const label = () => {
    const box = el.closest(".gmar-explorer");
    for (const slider of box?.querySelectorAll(".widget-slider, .widget-hslider") ?? []) {
      const text = slider.querySelector(".widget-label")?.textContent.trim(),
        handles = slider.querySelectorAll(".noUi-handle, .ui-slider-handle");
      handles.forEach((handle, i) => {
        const words = handles.length > 1 ? `${text}, ${["first", "last"][i]}` : text;
        if (handle.getAttribute("aria-label") !== words) handle.setAttribute("aria-label", words);
      });
      const readout = slider.querySelector(".widget-readout");
      if (readout && !readout.hasAttribute("aria-label")) {
        readout.setAttribute("role", "textbox");
        readout.setAttribute("aria-label", `${text}, value`);
      }
    }
  };
  const observer = new MutationObserver(label);
  const timer = setTimeout(() => {
    // the box around the view is put together after the view
    const box = el.closest(".gmar-explorer");
    if (box)
      observer.observe(box, { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-label"] });
    label();
  });
  return () => {
    clearTimeout(timer);
    observer.disconnect();
  };
}
