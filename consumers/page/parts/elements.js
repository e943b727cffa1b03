// Elements of the document. Text goes in as text, whatever it holds.

const byId = (id) => document.getElementById(id);

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children);
  return made;
};

const shape = (name, attributes, text) => {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};

const svgOf = (width, height) => shape('svg', {
  viewBox: `0 0 ${width} ${height}`, height, 'aria-hidden': 'true', focusable: 'false',
});

// Nothing is touched where it would stay the same.
const setText = (place, text) => {
  if (place.textContent !== text) place.textContent = text;
};

const setHidden = (place, hidden) => {
  if (place.hidden !== hidden) place.hidden = hidden;
};

// A label in its own direction of writing, cut where it is long; the title has all of it.
const nameOf = (label) => element('bdi', { class: 'name', title: shown(label) }, shown(label));
