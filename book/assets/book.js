// Repairs for readers who use a keyboard or a screen reader.
addEventListener('DOMContentLoaded', () => {
  // The theme names these otherwise than they read ("Search Ctrl+K" is named "Search"): let the text be the name.
  document.querySelectorAll('.search-button-field, summary').forEach((el) => el.removeAttribute('aria-label'));
});
addEventListener('load', async () => {
  // What scrolls sideways in its own box must be reachable without a mouse.
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll('mjx-container, table, pre, .text_html, .widget-subarea')) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
  }
});
