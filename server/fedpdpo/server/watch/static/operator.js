// What an operator may do: the token stays in this tab, and travels with each request.

const at = (id) => document.getElementById(id);

async function ask(path, method) {
  const answer = await fetch(path, { method, headers: { Authorization: `Bearer ${sessionStorage.token}` } });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}

async function identify() {
  try {
    const name = await (await ask("/api/operator", "GET")).json();
    at("operator-told").textContent = `You are operator ${name}.`;
    at("actions").hidden = false;
  } catch (error) {
    delete sessionStorage.token;
    at("operator-told").textContent = error.message;
    at("actions").hidden = true;
  }
}

async function act(action) {
  if (action === "stop" && !confirm("Stop the run with its newest adapter? It cannot go on afterwards.")) return;
  try {
    await ask(`/api/${action}`, "POST");
    at("operator-told").textContent = `Done: ${action}.`;
  } catch (error) {
    at("operator-told").textContent = error.message;
  }
}

export function operate() {
  at("operator").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.token = at("token").value.trim();
    at("token").value = "";
    identify();
  });
  for (const button of at("actions").querySelectorAll("button")) {
    button.addEventListener("click", () => act(button.dataset.action));
  }
  if (sessionStorage.token) identify();
}
