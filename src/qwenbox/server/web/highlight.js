// Colours for code: one regular expression a language family, tokens become spans. A token it does not know stays plain text.
const words = (text) => text.split(" ");
const families = {
  c: {
    comment: /\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)/,
    string: /"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?/,
    keys: words("abstract as async await auto bool boolean break byte case catch char class const constexpr continue crate default defer delete do double else enum export extends extern false final finally float fn for from func function go goto if impl implements import in instanceof int interface let long loop match mod mut namespace new nil null nullptr of override package private protected pub public range return self short signed sizeof static string struct super switch template this throw throws trait true try type typedef typename typeof undefined union unsafe unsigned use using var virtual void volatile where while yield"),
  },
  python: {
    comment: /#[^\n]*/,
    string: /(?:[rRbBfFuU]{0,2})(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)/,
    keys: words("False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield"),
  },
  shell: {
    comment: /(?<=^|\s)#[^\n]*/,
    string: /"(?:\\.|[^"\\])*"?|'[^']*'?/,
    keys: words("if then else elif fi for in do done while until case esac function return export local set unset exit echo cd source sudo"),
  },
  sql: {
    comment: /--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)/,
    string: /'(?:''|[^'])*'?/,
    keys: words("select from where and or not null is in as on join left right inner outer full group by order having limit offset insert into values update set delete create table index view drop alter add primary key foreign references unique default check distinct union all case when then else end with exists between like asc desc begin commit rollback"),
    ignoreCase: true,
  },
  markup: { comment: /<!--[\s\S]*?(?:-->|$)/, string: /"[^"]*"?|'[^'\n]*'?/, keys: [], name: /<\/?[A-Za-z][\w:-]*|\/?>/ },
  data: { comment: /(?<=^|\s)#[^\n]*/, string: /"(?:\\.|[^"\\\n])*"?/, keys: words("true false null yes no on off") },
};
const names = {
  c: "c cc cpp c++ h hpp cs csharp java js javascript jsx ts typescript tsx go rust rs swift kotlin kt scala php dart css scss", python: "python py python3", shell: "bash sh shell zsh console",
  sql: "sql sqlite postgresql mysql", markup: "html xml svg vue", data: "json jsonc yaml yml toml ini",
};
const familyOf = new Map(Object.entries(names).flatMap(([family, list]) => words(list).map((name) => [name, family])));
const compiled = new Map();

function scanner(name) {
  if (!compiled.has(name)) {
    const { comment, string, keys, name: tag, ignoreCase } = families[name];
    const parts = [`(?<comment>${comment.source})`, `(?<string>${string.source})`, `(?<number>\\b(?:0[xX][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b)`];
    if (keys.length) parts.push(`(?<key>\\b(?:${keys.join("|")})\\b)`);
    parts.push(tag ? `(?<name>${tag.source})` : "(?<name>\\b[A-Za-z_]\\w*(?=\\())");
    compiled.set(name, new RegExp(parts.join("|"), ignoreCase ? "gi" : "g"));
  }
  return compiled.get(name);
}

/** Appends `code` to `node`, coloured for `language` where we know it. */
export function highlight(node, code, language) {
  const family = familyOf.get(language.toLowerCase());
  if (!family || code.length > 50_000) return node.append(code);
  let end = 0;
  for (const match of code.matchAll(scanner(family))) {
    const [kind] = Object.entries(match.groups).find(([, text]) => text !== undefined);
    if (match.index > end) node.append(code.slice(end, match.index));
    const span = document.createElement("span");
    span.className = `hl-${kind}`;
    span.textContent = match[0];
    node.append(span);
    end = match.index + match[0].length;
  }
  if (end < code.length) node.append(code.slice(end));
}
