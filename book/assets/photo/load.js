// Starts 'Your own photo'. A page opened from disk may neither fetch nor import files, so everything comes by script
// elements: `code.js` (written by the build) holds the modules as text, and the model comes in parts on a button.
(() => {
  const own = window.gmarPhoto;
  const here = document.currentScript.src.replace(/[^/]*$/, "");

  function script(file) {
    return new Promise((resolve, reject) => {
      const el = document.createElement("script");
      el.src = here + file;
      el.onload = () => {
        el.remove();
        resolve();
      };
      el.onerror = () => reject(new Error(`${file} is missing beside the page, or the connection broke off.`));
      document.head.append(el);
    });
  }

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) out[k] = text.charCodeAt(k);
    return out;
  }

  // { code, wasm, graph }: array buffers, put together from parts of gzip in base64
  async function fetchParts(progress) {
    const found = {};
    let done = 0;
    for (const [name, files] of Object.entries(own.parts)) {
      const pieces = [];
      for (const { file, bytes } of files) {
        await script(file);
        pieces.push(bytesOf(own.arrived));
        own.arrived = null;
        progress((done += bytes) / own.bytes);
      }
      const stream = new Blob(pieces).stream().pipeThrough(new DecompressionStream("gzip"));
      found[name] = await new Response(stream).arrayBuffer();
    }
    return found;
  }

  async function main() {
    const root = document.getElementById("own-photo");
    const addresses = [];
    for (const [name, text] of own.modules) {
      const code = addresses.reduce((code, [file, url]) => code.replaceAll(`"./${file}.js"`, `"${url}"`), text);
      addresses.push([name, URL.createObjectURL(new Blob([code], { type: "text/javascript" }))]);
    }
    const style = document.createElement("style");
    style.textContent = own.style;
    document.head.append(style);
    const page = await import(addresses.at(-1)[1]);
    own.page = page.start(root, { ...own, fetchParts });
  }
  main();
})();
