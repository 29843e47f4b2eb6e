// Texts to begin with.

export const LABELLED = [
  ["cooking", "Keep bread in a paper bag and it stays crisp for two days."],
  ["cooking", "A pinch of salt brings out the sweetness of a tomato."],
  ["cooking", "Let the dough rest overnight in a cool place."],
  ["cooking", "Wie lange müssen Linsen ohne Einweichen kochen?"],
  ["cooking", "Store opened yoghurt in the coldest part of the fridge."],
  ["cooking", "Rice turns out dry when the lid is lifted too early."],
  ["weather", "A thin layer of fog covered the valley until noon."],
  ["weather", "Thunderstorms are likely along the coast this evening."],
  ["weather", "Der Winter war der mildeste seit Beginn der Messungen."],
  ["weather", "Warm air rises, cools, and its moisture becomes cloud."],
  ["weather", "Snow stayed on the northern slopes into May."],
  ["weather", "Gusts of ninety kilometres an hour closed the bridge."],
  ["sport", "She ran the last kilometre faster than the first."],
  ["sport", "The keeper saved two penalties in the shoot-out."],
  ["sport", "A cyclist drafts behind another to save effort."],
  ["sport", "Das Finale im Tischtennis dauerte fast zwei Stunden."],
  ["sport", "Swimmers shave their legs to reduce drag."],
  ["sport", "The home side lost its third match in a row."],
  ["computing", "A hash table finds a key without looking at the others."],
  ["computing", "The server answers 429 when its queue is full."],
  ["computing", "Sorting first makes duplicate lines easy to find."],
  ["computing", "Ein Compiler übersetzt Quelltext in Maschinencode."],
  ["computing", "Keep passwords in a vault, never in the repository."],
  ["computing", "Half precision saves memory and loses some digits."],
];

export const TEXTS = LABELLED.map(([, text]) => text);

export const PAIRS = [
  "How do I keep bread fresh?",
  "Keep bread in a paper bag and it stays crisp for two days.",
  "Wie bleibt Brot länger frisch?",
  "The server answers 429 when its queue is full.",
  "Too many requests: wait and try again.",
  "Thunderstorms are likely along the coast this evening.",
  "Heute Abend sind an der Küste Gewitter möglich.",
  "She ran the last kilometre faster than the first.",
];
