"use strict";
const shortcuts = new Map(
  Array.from(document.querySelectorAll("[data-shortcut]"), (element) => [element.dataset.shortcut, element]),
);

// A held key must not decide about pairs that nobody has seen.
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const element = shortcuts.get(event.key.toLowerCase());
  if (element) {
    event.preventDefault();
    element.click();
  }
});
