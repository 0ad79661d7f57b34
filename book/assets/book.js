// The theme's search button reads "Search Ctrl+K" but is named "Search": let its text be its name.
addEventListener('DOMContentLoaded', () => {
  document.querySelectorAll('.search-button-field').forEach((button) => button.removeAttribute('aria-label'));
});
