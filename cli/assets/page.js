// Replaces the sections of the page as the server sends them. The server has escaped everything in them.
'use strict';

const connection = document.getElementById('connection');
const shown = new Map();

function show(sections) {
  for (const [id, html] of Object.entries(sections)) {
    const section = document.getElementById(id);
    if (!section || shown.get(id) === html) continue;
    shown.set(id, html);
    // Selected text stays selected: whoever marks something wants to copy it.
    const selection = document.getSelection();
    if (selection && !selection.isCollapsed && section.contains(selection.anchorNode)) continue;
    section.innerHTML = html;
  }
}

const source = new EventSource('/api/events?page');
source.addEventListener('open', () => { connection.textContent = 'live'; });
// EventSource comes back by itself.
source.addEventListener('error', () => { connection.textContent = 'connection lost, trying again'; });
source.addEventListener('page', (event) => show(JSON.parse(event.data)));
