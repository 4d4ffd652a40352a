// The page, put together: each module owns one thing of it, and here they learn of each other.
import { draw, forget } from "./answer.js";
import { focusComposer } from "./composer.js";
import { showDepth } from "./depth.js";
import { $ } from "./dom.js";
import { applyLook, onLook } from "./look.js";
import { onService, showService, watch } from "./service.js";
import { signIn } from "./settings.js";
import { showWelcome } from "./welcome.js";

onLook(() => { showWelcome(); showService(); showDepth(); draw(); });
onService(showDepth);
$("new-chat").addEventListener("click", () => { forget(); focusComposer(); });

signIn();
applyLook();
watch();
focusComposer();
