/** Words of tokens: what stands on axes, in the strip and in sentences. */

const MAX_SHOWN = 24;

/**
 * A token as one sees it: blanks at its ends and line breaks have signs of their own.
 *
 * @param {{id: number | null, text: string | null}} token
 */
export function showToken(token, step) {
  if (token.text === null) return token.id === null ? `${step}` : `${token.id}`;
  const cut = token.text.length > MAX_SHOWN ? `${token.text.slice(0, MAX_SHOWN - 1)}…` : token.text;
  const dotted = cut.replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length));
  const signed = dotted.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  // What would turn the text around, or move it.
  return signed.replace(/[\p{Cc}\p{Cf}]/gu, "�") || "∅";
}

/** A step in a sentence: its number, and in quotes what stands there, unless it is a vector. */
export function nameStep(token, step) {
  return token.text === null && token.id === null ? `${step}` : `${step} “${showToken(token, step)}”`;
}

/** Steps where `sought` begins in a text, however it is cut into tokens; else those whose token has it, or is it. */
export function findSteps(tokens, sought) {
  const folded = sought.toLowerCase(), texts = tokens.map(({ text }) => text?.toLowerCase() ?? "");
  const isText = tokens.some(({ span }) => span !== null), joined = texts.join("");
  let begin = 0;
  return tokens.flatMap(({ id, text }, step) => {
    const at = joined.indexOf(folded, begin);
    const isFound = isText ? at >= 0 && at < begin + texts[step].length : texts[step].includes(folded);
    begin += texts[step].length;
    return isFound || (text === null && `${id}` === sought) ? [step] : [];
  });
}
