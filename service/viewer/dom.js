/** Elements. What they say is text, wherever it comes from: nothing here reads markup. */

/**
 * @param {string} tag
 * @param {Record<string, any>} properties
 * @param {(Node | string)[]} children
 */
export function create(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The element of an id, which the page has. */
export const find = (id) => document.getElementById(id);

/** A bar: a name, how long it is from 0 to 1, and the number beside it. */
export function createBar(name, share, number) {
  const fill = create("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return create("li", {}, [
    create("span", { className: "name", textContent: name, title: name }),
    create("span", { className: "bar" }, [fill]),
    create("span", { className: "number", textContent: number }),
  ]);
}
