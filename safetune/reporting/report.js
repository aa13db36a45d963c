"use strict";
const flagged = Array.from(document.querySelectorAll("button.flagged"));
const toggleAll = document.getElementById("toggle-all");

function show(button, shown) {
  button.classList.toggle("shown", shown);
  button.setAttribute("aria-pressed", String(shown));
}

function someBlurred() {
  return flagged.some((button) => !button.classList.contains("shown"));
}

function nameToggleAll() {
  if (!toggleAll) return;
  const what = toggleAll.dataset.what || "flagged pictures";
  toggleAll.textContent = `${someBlurred() ? "Show" : toggleAll.dataset.hide || "Blur"} all ${what}`;
}

for (const button of flagged) {
  button.addEventListener("click", () => {
    show(button, !button.classList.contains("shown"));
    nameToggleAll();
  });
}

if (toggleAll && flagged.length) {
  toggleAll.hidden = false;
  toggleAll.addEventListener("click", () => {
    const shown = someBlurred();
    flagged.forEach((button) => show(button, shown));
    nameToggleAll();
  });
}

const details = Array.from(document.querySelectorAll("details"));
addEventListener("beforeprint", () => {
  details.forEach((element) => { element.dataset.open = String(element.open); element.open = true; });
});
addEventListener("afterprint", () => {
  details.forEach((element) => { element.open = element.dataset.open === "true"; });
});
