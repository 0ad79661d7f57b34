// anywidget is published for require.js as `define(['@jupyter-widgets/base'], factory)`. Keep the factory, need no require.js.
export let factory;
globalThis.define = (_, f) => { factory = f; delete globalThis.define; };
