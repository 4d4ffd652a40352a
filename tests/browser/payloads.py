"""What a hostile model might write, to have a page run or fetch something. Every one of them has to stay text."""

from __future__ import annotations

BREAK = "window.broken=1"
OUTSIDE = "http://tracker.invalid"

HTML = (
    f"<script>{BREAK}</script>",
    f"<scr<script>ipt>{BREAK}</scr</script>ipt>",
    f"<img src=x onerror={BREAK}>",
    f'<img src="{OUTSIDE}/p.png">',
    f"<svg onload={BREAK}><animate onbegin={BREAK} attributeName=x dur=1s></svg>",
    f"<svg><script>{BREAK}</script></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={BREAK}>",
    "<iframe srcdoc='<script>parent.broken=1</script>'></iframe>",
    "<iframe src='javascript:parent.broken=1'></iframe>",
    f"<object data='data:text/html,<script>parent.broken=1</script>'></object><embed src='{OUTSIDE}/e'>",
    f"<link rel=stylesheet href='{OUTSIDE}/s.css'><style>@import '{OUTSIDE}/i.css';*{{background:url({OUTSIDE}/b)}}</style>",
    f"<meta http-equiv=refresh content='0;url={OUTSIDE}'><base href='{OUTSIDE}/'>",
    f"<form action='{OUTSIDE}'><button formaction='javascript:{BREAK}'>Send</button></form>",
    f"<details open ontoggle={BREAK}><summary>x</summary></details>",
    f"<video autoplay><source onerror={BREAK}></video><audio src=x onerror={BREAK}></audio>",
    f"<input autofocus onfocus={BREAK}><body onload={BREAK}><marquee onstart={BREAK}>",
    f"</textarea></title></style></noscript><img src=x onerror={BREAK}>",
    f"<!--<img src='--><img src=x onerror={BREAK}>'>",
    f"<a href=javascript:{BREAK}>x</a><a href='{OUTSIDE}' ping='{OUTSIDE}'>y</a>",
    f"&lt;img src=x onerror={BREAK}&gt; &#60;script&#62;{BREAK}&#60;/script&#62;",
    f"\\x3cscript\\x3e{BREAK}\\x3c/script\\x3e \u003cscript>{BREAK}\u003c/script>",
)
LINKS = (
    f"[x](javascript:{BREAK})",
    f"[x](JaVaScRiPt:{BREAK})",
    f"[x](java\tscript:{BREAK})",
    f"[x](\x01javascript:{BREAK})",
    f"[x](javascript&colon;{BREAK})",
    f"[x](vbscript:{BREAK})",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    f"[x](blob:{OUTSIDE}/1)",
    "[x](file:///etc/passwd)",
    f"<javascript:{BREAK}>",
    f'[x]({OUTSIDE}/ "onmouseover={BREAK}")',
    f'[x]({OUTSIDE}/"onmouseover="{BREAK})',
    f"[x]: javascript:{BREAK}\n\n[x]",
    f"![x](javascript:{BREAK})",
    f"![pixel]({OUTSIDE}/p.png)",
    f'![x](x"onerror="{BREAK})',
    f"![a](data:image/svg+xml,<svg onload={BREAK}>)",
    f"[![n]({OUTSIDE}/n.png)](javascript:{BREAK})",
)
BLOCKS = (
    f"```html\n<img src=x onerror={BREAK}>\n```",
    f'```"><img src=x onerror={BREAK}>\ncode\n```',
    f"```javascript\n{BREAK}\n",
    f"| a |\n|---|\n| <img src=x onerror={BREAK}> [x](javascript:{BREAK}) |",
    f"> # <script>{BREAK}</script>\n> 1. <svg onload={BREAK}>",
    f"$$\\href{{javascript:{BREAK}}}{{x}}$$ \\(\\url{{javascript:{BREAK}}}\\)",
    f"`<img src=x onerror={BREAK}>` ``<b onclick={BREAK}>``",
    "\u202etxt.exe\u202c \u2066\u200b \x1b]8;;javascript:x\x07link\x1b]8;;\x07 \x1b[2J\x00\x08\x7f",
    "__proto__ constructor {{constructor.constructor('window.broken=1')()}} ${window.broken=1} <%= 1 %>",
    "[" * 300 + "x" + "](y)" * 300,
    "*" * 500 + "_" * 500 + "`" * 501,
    "> " * 200 + "deep",
    "- " * 100 + "deep",
)
ALL = "\n\n".join((*HTML, *LINKS, *BLOCKS))
