// Writes LICENSES.txt: every package that esbuild put into widgets.js, with its version and licence text.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';

const inputs = Object.keys(JSON.parse(readFileSync('meta.json')).inputs).filter((p) => p.startsWith('node_modules/'));
const folders = new Set(inputs.map((p) => p.match(/^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/)[0]));
const blocks = [...folders].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`));
  const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
  // The packages of Project Jupyter come without a licence file; theirs is the one of ipywidgets' repository.
  if (!file && !/^@(jupyter-widgets|lumino)\//.test(name)) throw new Error(`${name} has no licence file`);
  const text = readFileSync(file ? `${folder}/${file}` : 'JUPYTER-LICENSE', 'utf8').trim();
  return `${name} ${version}, ${license}\n${'-'.repeat(60)}\n${text}\n`;
});
writeFileSync('LICENSES.txt', blocks.join('\n\n'));
