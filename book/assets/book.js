// Repairs for readers who use a keyboard or a screen reader.
addEventListener('DOMContentLoaded', () => {
  // The theme names these otherwise than they read ("Search Ctrl+K" is named "Search"): let the text be the name.
  document.querySelectorAll('.search-button-field, summary').forEach((el) => el.removeAttribute('aria-label'));
  // A list whose entries are not list items to a screen reader.
  document.querySelectorAll('.citation-list').forEach((el) => el.removeAttribute('role'));
});
addEventListener('load', async () => {
  // On a phone a very wide figure scrolls instead of shrinking to a stripe (book.css).
  for (const img of document.querySelectorAll('.cell_output img')) {
    if (img.naturalWidth > 1.7 * img.naturalHeight) img.classList.add('wide');
  }
  // What scrolls sideways in its own box must be reachable without a mouse.
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll('mjx-container, .cell_output, table, pre, .text_html, .widget-subarea')) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
  }
});
