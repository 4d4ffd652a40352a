// The page, put together: each module owns one thing of it, and here they learn of each other.
import { catchUp, draw, isRunning, newConversation, openConversation } from "./answer.js";
import { createConversation } from "./api.js";
import "./branches.js";
import { showChoice, watchChoice } from "./choose.js";
import { focusComposer } from "./composer.js";
import "./connect.js";
import { conversationId } from "./conversation.js";
import { refresh, showConversations, startConversations } from "./conversations.js";
import { showDepth } from "./depth.js";
import { $ } from "./dom.js";
import { showFiles } from "./files.js";
import { applyLook, onLook } from "./look.js";
import { showModels } from "./models.js";
import { onService, showService, watch } from "./service.js";
import { signIn } from "./settings.js";
import { measureContext } from "./speed.js";
import { forget, load, place } from "./store.js";
import { showWelcome } from "./welcome.js";

onLook(() => { showWelcome(); showService(); showDepth(); showModels(); showFiles(); showConversations(); showChoice(); draw(); });
onService(() => { showDepth(); showModels(); watchChoice(); if (!isRunning()) measureContext(); });
$("new-chat").addEventListener("click", () => { newConversation(); focusComposer(); });

/** Before conversations lived on the service this browser kept one. */
async function takeOver() {
  const kept = load("messages", []);
  if (!kept.length) return place();
  const messages = kept.map(({ role, content, reasoning = "", seconds, why, state }) => {
    const error = state?.error === undefined ? undefined : { message: state.error, code: state.code };
    return { role, content, reasoning, seconds, why, error, state: error ? "error" : state === "running" ? "interrupted" : state };
  });
  const { id } = await createConversation({ messages });
  forget("messages");
  refresh();
  return id;
}

signIn();
applyLook();
watch();
focusComposer();
startConversations(openConversation, (id) => { if (id === conversationId()) newConversation(); }, catchUp);
takeOver().catch(place).then((id) => { if (id && !isRunning()) openConversation(id); });
