// The widgets of a static page: ipywidgets' own controls plus anywidget, from the state that the notebook saved.
// ipywidgets' html-manager does the same in 3.6 MB (twice every control, for ipywidgets 7 and 8, and a CDN to fall back
// on); this takes ipywidgets 8 and anywidget only, so a page stays light and asks nobody for anything.
import * as base from '@jupyter-widgets/base';
import { ManagerBase } from '@jupyter-widgets/base-manager';
import * as controls from '@jupyter-widgets/controls';
import { Widget } from '@lumino/widgets';
import { factory } from './amd.js'; // before anywidget: catches what it defines
import 'anywidget';
import '@lumino/widgets/style/index.css';
import '@jupyter-widgets/controls/css/labvariables.css';
import '@jupyter-widgets/controls/css/widgets-base.css';

const modules = {
  '@jupyter-widgets/base': base,
  '@jupyter-widgets/controls': controls,
  anywidget: factory(base),
};

const style = document.createElement('link');
style.rel = 'stylesheet';
style.href = new URL('widgets.css', document.currentScript.src);
document.head.append(style);

class StaticManager extends ManagerBase {
  async loadClass(className, moduleName) {
    const found = modules[moduleName]?.[className];
    if (!found) throw new Error(`${moduleName}.${className} is not among this page's widgets (book/assets/vendor/widgets/main.js)`);
    return found;
  }
  async _get_comm_info() { return {}; }
  async _create_comm() { return { on_close() {}, on_msg() {}, close() {} }; } // no kernel to talk to
}

// ipywidgets leaves these without an accessible name: the label in front of them is theirs.
function nameHandles(root) {
  for (const box of root.querySelectorAll('.jupyter-widgets')) {
    const label = box.querySelector(':scope > .widget-label')?.textContent;
    if (label) for (const el of box.querySelectorAll('.noUi-handle, [contenteditable]')) el.setAttribute('aria-label', label);
  }
}

async function renderAll() {
  // Sliders typeset their label with MathJax 2's interface; the page has MathJax 3.
  await window.MathJax?.startup?.promise;
  if (window.MathJax) MathJax.Hub = { Queue: ([, , el]) => MathJax.typesetPromise([el]) };
  for (const state of document.querySelectorAll('script[type="application/vnd.jupyter.widget-state+json"]')) {
    const manager = new StaticManager();
    const models = await manager.set_state(JSON.parse(state.textContent));
    for (const tag of document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')) {
      const model = models.find((m) => m.model_id === JSON.parse(tag.textContent).model_id);
      if (!model) continue;
      const place = document.createElement('div');
      place.className = 'widget-subarea';
      tag.before(place);
      Widget.attach((await manager.create_view(model)).luminoWidget, place);
      nameHandles(place);
    }
  }
}
if (document.readyState === 'complete') renderAll();
else addEventListener('load', renderAll);
