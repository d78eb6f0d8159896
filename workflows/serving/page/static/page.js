"use strict";

// The picture stays in the browser until the form is sent: it is shown from an object URL.
const form = document.getElementById("search");
if (form) {
  const drop = document.getElementById("drop");
  const input = document.getElementById("image");
  const preview = document.getElementById("preview");
  const results = document.getElementById("results");

  const show = () => {
    if (preview.src) URL.revokeObjectURL(preview.src);
    const file = input.files[0];
    preview.hidden = !file;
    drop.classList.toggle("filled", Boolean(file));
    if (file) preview.src = URL.createObjectURL(file);
    else preview.removeAttribute("src");
  };
  input.addEventListener("change", show);

  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) {
    drop.addEventListener(name, () => drop.classList.remove("over"));
  }
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    show();
    form.requestSubmit();
  });

  form.addEventListener("htmx:beforeRequest", () => results.setAttribute("aria-busy", "true"));
  form.addEventListener("htmx:afterRequest", () => results.setAttribute("aria-busy", "false"));
  results.addEventListener("htmx:afterSwap", () => {
    if (matchMedia("(max-width: 760px)").matches) results.scrollIntoView({ block: "start" });
  });
  form.addEventListener("htmx:sendError", () => {
    const problem = document.createElement("p");
    problem.className = "problem";
    problem.setAttribute("role", "alert");
    problem.textContent = "The service does not answer. Is it still running?";
    results.replaceChildren(problem);
  });
}

// `muva serve` prints a link to the login with the token after a #, which no browser sends.
const login = document.getElementById("login");
const logIn = () => {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  history.replaceState(null, "", location.pathname);
  document.getElementById("token").value = given;
  login.submit();
};
if (login) {
  logIn();
  addEventListener("hashchange", logIn);
}
