document.documentElement.classList.add("js");

const said = document.getElementById("said");

function say(text) {
  said.textContent = text;
  said.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => said.classList.remove("shown"), 1800);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) { say("The browser does not let the page copy: select the command."); return; }
  }
  say("Copied: " + text);
}

const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

for (const film of document.querySelectorAll(".film")) {
  const video = film.querySelector("video");
  for (const line of film.querySelectorAll(".line")) {
    line.querySelector("button").addEventListener("click", () => copy(line.querySelector("code").textContent));
  }
  video?.addEventListener("error", () => { film.querySelector(".unplayable").hidden = false; });
  const pick = film.querySelector(".pick");
  if (!pick) continue;
  const starts = JSON.parse(film.dataset.starts), picks = JSON.parse(film.dataset.picks);
  const range = pick.querySelector("input"), shown = pick.querySelector("output");
  const prompt = film.querySelector(".branch input"), code = film.querySelector(".branch code");

  const show = () => {
    const chunk = Number(range.value);
    const words = prompt.value.trim();
    const moment = starts[chunk].toFixed(2) + " s";
    shown.textContent = moment;
    range.setAttribute("aria-valuetext", moment + ", chunk " + (chunk + 1) + " of " + starts.length);
    code.textContent = pick.dataset.before + picks[chunk] + "s" + (words ? " --prompt " + quoted(words) : "") + pick.dataset.after;
  };
  const seek = () => { if (video && video.readyState) video.currentTime = picks[Number(range.value)]; };

  range.addEventListener("input", () => { show(); seek(); });
  range.addEventListener("pointerup", () => { show(); copy(code.textContent); });
  range.addEventListener("keydown", (event) => { if (event.key === "Enter") copy(code.textContent); });
  prompt.addEventListener("input", show);
  for (const svg of film.querySelectorAll(".curve svg")) {
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const end = 2 * starts[starts.length - 1] - starts[starts.length - 2];
      const at = (event.clientX - box.left) / box.width * (video?.duration || end);
      range.value = Math.max(1, starts.findLastIndex((start) => start <= at));
      show(); seek(); copy(code.textContent);
    });
  }
  show();
}

const every = Number(document.body.dataset.refresh);
if (every) {
  setInterval(() => {
    const playing = [...document.querySelectorAll("video")].some((video) => !video.paused);
    const typing = [...document.querySelectorAll(".prompt input")].some((input) => input.value);
    if (!playing && !typing && !document.hidden) location.reload();
  }, every * 1000);
}
