// The scale of accuracies: viridis, which is read alike by those who see colours otherwise, and in grey.
// Nuñez, Anderton and Renslow 2018 say why such scales; the stops are matplotlib's, CC0.

const STOPS = [
  [68, 1, 84], [72, 26, 108], [71, 47, 125], [65, 68, 135], [57, 86, 140], [49, 104, 142], [42, 120, 142],
  [35, 136, 142], [31, 152, 139], [34, 168, 132], [53, 183, 121], [84, 197, 104], [122, 209, 81], [165, 219, 54],
  [210, 226, 27], [253, 231, 37],
];

const COLOURS = Array.from({ length: 256 }, (_, place) => {
  const at = (place / 255) * (STOPS.length - 1);
  const below = Math.min(Math.floor(at), STOPS.length - 2);
  const mixed = STOPS[below].map((low, channel) => Math.round(low + (STOPS[below + 1][channel] - low) * (at - below)));
  return `rgb(${mixed.join(',')})`;
});

const colourOf = (share) => COLOURS[Math.max(0, Math.min(255, Math.round(share * 255)))];

const drawScale = (canvas) => {
  const context = canvas.getContext('2d');
  for (let x = 0; x < canvas.width; x += 1) {
    context.fillStyle = colourOf(x / (canvas.width - 1));
    context.fillRect(x, 0, 1, canvas.height);
  }
};
