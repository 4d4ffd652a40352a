// The page, put together: each module owns one thing of it, and here they learn of each other.
import { draw, forget, isRunning } from "./answer.js";
import { focusComposer } from "./composer.js";
import { showConnect } from "./connect.js";
import { showDepth } from "./depth.js";
import { $ } from "./dom.js";
import { applyLook, onLook } from "./look.js";
import { showModels } from "./models.js";
import { onService, showService, watch } from "./service.js";
import { signIn } from "./settings.js";
import { measureContext } from "./speed.js";
import { showWelcome } from "./welcome.js";

onLook(() => { showWelcome(); showService(); showDepth(); showModels(); showConnect(); draw(); });
onService(() => { showDepth(); showModels(); if (!isRunning()) measureContext(); });
$("new-chat").addEventListener("click", () => { forget(); focusComposer(); });

signIn();
applyLook();
watch();
focusComposer();
