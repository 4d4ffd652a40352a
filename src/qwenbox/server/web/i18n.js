// Every sentence of the page, in both languages. A test holds the two tables against each other.
export const texts = {
  en: {
    newChat: "New chat", settings: "Settings", themeIs: "Colours: {theme}", conversation: "Conversation", toBottom: "To the end",
    themeAuto: "Auto", themeLight: "Light", themeDark: "Dark", otherLanguage: "中文",
    welcomeTitle: "A Qwen model of your own",
    welcomeText: "Everything runs on this machine. What you write here goes nowhere else.",
    promptLabel: "Your message", promptPlaceholder: "Write a message", send: "Send", stop: "Stop",
    hint: "Enter sends, Shift+Enter starts a new line",
    systemPrompt: "System prompt", systemPlaceholder: "How the model should behave, in your words", temperature: "Temperature (0 to 2)", maxTokens: "Longest answer, in tokens", modelDefault: "the model's own",
    apiKey: "API key (only if the service asks for one)", keptHere: "Settings are kept in this browser, conversations by the service on its machine.", close: "Done",
    copy: "Copy", copied: "Copied", again: "Try again", thinking: "Thinking", thought: "Thought", thinkingFor: "Thinking, {count} s", thoughtFor: "Thought for {count} s",
    depth: "How much to think", depthFast: "Fast", depthAuto: "Auto", depthThink: "Think", answerNow: "Answer now",
    depthNever: "This model does not think.", depthAlways: "This model always thinks; Fast ends its thinking at once.",
    endedBudget: "The thinking had used up its tokens.", endedTime: "The thinking had used up its time.", endedLength: "The rest of the tokens were kept for the answer.",
    endedAnswer_now: "You asked for the answer.", endedLoop: "The thinking went in circles and was ended.", endedStop: "The thinking broke off.",
    wentInCircles: "The answer went in circles and was ended.",
    fetching: "fetching", verifying: "verifying", loading: "loading", restarting: "restarting", unreachable: "not reachable", failed: "failed", closed: "closed", locked: "locked",
    chooseModel: "Model:", models: "Models", tools: "Tools", loaded: "in memory", load: "Load", unload: "Unload", unloaded: "loads when you write", queued: "waits for its turn", draining: "makes room",
    fetchingModel: "The model is being fetched", verifyingModel: "The model is being verified", loadingModel: "The model is being loaded", restartingModel: "The model is being started again",
    bytesOf: "{done} of {total} GB", secondsLeft: "about {count} s left", minutesLeft: "about {count} min left", comma: ", ", period: ". ",
    writeAlready: "You can write already: the answer comes when the model is there.", triedAgain: "The last attempt failed and is repeated: {reason}", unavailable: "The model cannot be had: {reason}",
    inMemory: "{size} GB of memory", needsMemory: "needs {size} GB of memory", onDisk: "{size} GB on disk",
    measuredSpeed: "writes {rate} tokens/s (measured)", predictedSpeed: "writes about {rate} tokens/s (predicted)", window: "window of {count} tokens",
    thinksNever: "does not think", thinksAlways: "always thinks", thinksHybrid: "thinks where it is asked to", machine: "Kernels: {isa}, {threads} threads",
    connect: "Connect", connectText: "Other programs reach this service at", showKey: "Show the key",
    connectLocal: "The address is that of this machine. A program in a container needs host.docker.internal instead, and a service that listens there.",
    conversations: "Conversations", closeList: "Close the list", find: "Search conversations", found: "{count} found", foundNothing: "Nothing found", noConversations: "Your conversations will be listed here.", showMore: "Show more", importOne: "Import conversations", imported: "{count} imported", notImported: "{name}: {reason}", notJson: "it is no JSON", notAsExported: "{param} is not as in an export", inMemoryOnly: "Kept in memory only, until the service ends.",
    actionsOf: "Actions for “{title}”", rename: "Rename", title: "Title", remove: "Delete", removeTitle: "Delete this conversation?", removeText: "“{title}” and all its branches are overwritten. This cannot be undone.",
    cancel: "Cancel", answering: "is being answered", edit: "Edit", editQuestion: "Your question in other words", earlier: "The version before", later: "The version after", placeOf: "{at} / {of}",
    interrupted: "interrupted: the service ended meanwhile",
    stopped: "stopped", cutShort: "The answer reached its longest length.", speed: "{count} tokens, {rate}/s",
    reading: "Reading your message", readingOf: "{done} of {total} tokens read",
    context: "How much of the model's window this conversation fills", contextFull: "The model's window is nearly full: a new chat starts with an empty one.", contextOf: "{used} of {window} tokens",
    errorLost: "The connection to the service was lost.", errorKey: "This service needs an API key. Enter it in the settings.", errorEmpty: "The model answered nothing.",
    files: "Files of this message", attach: "Add a file: txt, md, pdf, docx", removeFile: "Remove {name}", fileReading: "is being read", fileTokens: "{count} tokens",
    fileEmpty: "is empty", fileLocked: "is protected by a password, or saved by an older Word", fileDamaged: "is damaged", filePictures: "has pictures of pages and no text",
    fileLong: "is longer than what is read", fileHard: "takes too much time or memory to read", fileUnknown: "is neither text nor PDF nor docx",
    filesTooLong: "The files have {used} tokens, and the model's window holds {window}, the answer included. Remove some, or choose a model with a larger window.",
    cue_hurry: "asks for an answer without thought", cue_given: "works on a given text", cue_free: "is free writing",
    cue_word: "asks what a word means", cue_conditions: "sets conditions", cue_form: "has a form to keep",
    cue_proof: "asks for a proof or a derivation", cue_contest: "is a contest question", cue_puzzle: "is a puzzle", cue_premises: "has many premises",
    cue_design: "asks for a design", cue_care: "asks for care", cue_science: "is mathematics or science", cue_result: "asks for a result",
    cue_conclusion: "asks for a conclusion", cue_code: "asks for code", cue_engineering: "asks for code that meets conditions",
    cue_fault: "looks for a fault", cue_plan: "asks for a plan", cue_judgement: "asks for a judgement", cue_analysis: "asks for an analysis",
    cue_composed: "has to be composed", cue_figures: "has figures", cue_formulas: "has formulas", cue_source: "has code", cue_sum: "has a sum",
    cue_error: "has an error", cue_parts: "has several parts", cue_long: "is long", cue_tools: "may take several tools",
    cue_nothing: "nothing in it asks for thought", cue_sure: "the model was sure of its answer", cue_unsure: "the model was not sure without thought",
    semicolon: "; ", badTemperature: "Temperature must be a number from 0 to 2.", badMaxTokens: "The longest answer must be a whole number above 0.",
    arrivalRuns: "{model} runs on the {isa} kernels", arrivalSpeed: "at most {rate} tokens/s by this machine's memory",
    choosing: "being chosen", choiceLooking: "Looking for a model on this machine and on the hubs. You can write already.",
    choiceAsked: "{name} suits this machine best: {size} GB to fetch, at most {rate} tokens/s. Until then {model} answers.",
    choiceAskedEarly: "{name} suits this machine best: {size} GB to fetch, at most {rate} tokens/s. First the small {model} comes, to answer at once.",
    choiceFetching: "{name} is being fetched", choiceMeanwhile: "{model} answers meanwhile.", choiceSwitched: "{name} answers from now on, in place of {before}.",
    choiceNothing: "There is no model yet. {reason}", choicePractice: "{model} is a practice model: for code, without thinking; a third party's upload, pinned by its sha256.",
    choiceYes: "Fetch it", choiceNo: "Not now", choiceOthers: "Other models", choiceRead: "Understood", choiceMore: "More models",
    offersText: "From a model hub. A size with ≈ is computed from the model's shape, and whether a hub has the file is asked before it is fetched. Speeds are the most that this machine's memory allows.",
    offerFacts: "{size} GB to fetch, at most {rate} tokens/s", offerSuits: "suits this machine", offerSlow: "slow here", offerLarge: "does not fit: needs {size} GB of memory", fetch: "Fetch",
    troubles: "On this disk, but not usable:", choosePath: "A .gguf file or a checkpoint on the service's machine", chooseFolder: "A folder with models", chooseMirror: "A mirror of the hub", take: "Use it", look: "Look there", tryMirror: "Try it",
    suggestion1: "Explain recursion to a twelve-year-old, with one example.", suggestion2: "Write a Python function that merges two sorted lists.",
    suggestion3: "Translate into Chinese: The meeting moves to Friday at ten.", suggestion4: "What should I check before I publish a small web service?",
  },
  zh: {
    newChat: "新对话", settings: "设置", themeIs: "配色：{theme}", conversation: "对话", toBottom: "到最新",
    themeAuto: "自动", themeLight: "浅色", themeDark: "深色", otherLanguage: "English",
    welcomeTitle: "属于你自己的 Qwen 模型",
    welcomeText: "一切都在这台机器上运行，你写的内容不会传到别处。",
    promptLabel: "你的消息", promptPlaceholder: "写点什么", send: "发送", stop: "停止",
    hint: "Enter 发送，Shift+Enter 换行",
    systemPrompt: "系统提示词", systemPlaceholder: "用你的话说明模型该怎样回答", temperature: "温度（0 到 2）", maxTokens: "回答最长多少 token", modelDefault: "模型默认值",
    apiKey: "API 密钥（服务要求时才需要）", keptHere: "设置保存在这个浏览器里，对话由服务保存在它的机器上。", close: "完成",
    copy: "复制", copied: "已复制", again: "重试", thinking: "思考中", thought: "思考过程", thinkingFor: "思考中，{count} 秒", thoughtFor: "思考了 {count} 秒",
    depth: "思考多少", depthFast: "快速", depthAuto: "自动", depthThink: "思考", answerNow: "立即回答",
    depthNever: "这个模型不会思考。", depthAlways: "这个模型总会思考；“快速”会让它马上结束思考。",
    endedBudget: "思考用完了 token 额度。", endedTime: "思考用完了时间。", endedLength: "剩下的 token 留给了回答。",
    endedAnswer_now: "你要求立即回答。", endedLoop: "思考陷入循环，已被结束。", endedStop: "思考中途停下了。",
    wentInCircles: "回答陷入循环，已被结束。",
    fetching: "下载中", verifying: "校验中", loading: "加载中", restarting: "重启中", unreachable: "连接不上", failed: "加载失败", closed: "已关闭", locked: "需要密钥",
    chooseModel: "模型：", models: "模型", tools: "工具", loaded: "已加载", load: "加载", unload: "卸载", unloaded: "提问时加载", queued: "排队中", draining: "正在让出内存",
    fetchingModel: "正在下载模型", verifyingModel: "正在校验模型", loadingModel: "正在加载模型", restartingModel: "正在重新启动模型",
    bytesOf: "{done} / {total} GB", secondsLeft: "大约还需 {count} 秒", minutesLeft: "大约还需 {count} 分钟", comma: "，", period: "。",
    writeAlready: "现在就可以提问，模型就绪后会回答。", triedAgain: "上一次尝试失败，正在重试：{reason}", unavailable: "模型无法使用：{reason}",
    inMemory: "占用内存 {size} GB", needsMemory: "需要内存 {size} GB", onDisk: "磁盘上 {size} GB",
    measuredSpeed: "生成 {rate} token/秒（实测）", predictedSpeed: "生成约 {rate} token/秒（估计）", window: "窗口 {count} token",
    thinksNever: "不会思考", thinksAlways: "总会思考", thinksHybrid: "按需思考", machine: "计算内核：{isa}，{threads} 个线程",
    connect: "接入", connectText: "其他程序通过这个地址使用本服务：", showKey: "显示密钥",
    connectLocal: "这是本机的地址。容器里的程序要改用 host.docker.internal，并让服务监听那里。",
    conversations: "对话列表", closeList: "关闭列表", find: "搜索对话", found: "找到 {count} 个", foundNothing: "没有找到", noConversations: "你的对话会列在这里。", showMore: "显示更多", importOne: "导入对话", imported: "已导入 {count} 个", notImported: "{name}：{reason}", notJson: "不是 JSON", notAsExported: "{param} 与导出的格式不符", inMemoryOnly: "只保存在内存里，服务停止后就没有了。",
    actionsOf: "“{title}”的操作", rename: "重命名", title: "标题", remove: "删除", removeTitle: "删除这个对话？", removeText: "“{title}”和它的所有分支都会被覆盖，无法恢复。",
    cancel: "取消", answering: "正在回答", edit: "编辑", editQuestion: "换一种问法", earlier: "上一个版本", later: "下一个版本", placeOf: "{at} / {of}",
    interrupted: "中断：服务在此期间停止了",
    stopped: "已停止", cutShort: "回答达到了最大长度。", speed: "{count} 个 token，{rate}/秒",
    reading: "正在阅读你的消息", readingOf: "已读 {done} / {total} 个 token",
    context: "这个对话占用了模型窗口的多少", contextFull: "模型的窗口快满了：新对话会从空窗口开始。", contextOf: "{used} / {window} token",
    errorLost: "与服务的连接中断了。", errorKey: "这个服务需要 API 密钥，请在设置中填写。", errorEmpty: "模型没有给出内容。",
    files: "这条消息的文件", attach: "添加文件：txt、md、pdf、docx", removeFile: "移除 {name}", fileReading: "正在读取", fileTokens: "{count} 个 token",
    fileEmpty: "是空的", fileLocked: "有密码保护，或由旧版 Word 保存", fileDamaged: "已损坏", filePictures: "只有页面图片，没有文字",
    fileLong: "超过了能读取的长度", fileHard: "读取它需要太多时间或内存", fileUnknown: "既不是文本，也不是 PDF 或 docx",
    filesTooLong: "这些文件有 {used} 个 token，模型的窗口连同回答一共只有 {window} 个。请移除一些，或换一个窗口更大的模型。",
    cue_hurry: "要求不经思考直接回答", cue_given: "处理给定的文字", cue_free: "自由写作", cue_word: "问词语的意思", cue_conditions: "有限定条件", cue_form: "要遵守格式",
    cue_proof: "要求证明或推导", cue_contest: "竞赛题", cue_puzzle: "谜题", cue_premises: "前提很多", cue_design: "要求设计", cue_care: "要求仔细", cue_science: "数学或科学题",
    cue_result: "要求算出结果", cue_conclusion: "要求得出结论", cue_code: "要求写代码", cue_engineering: "要求写满足条件的代码", cue_fault: "查找错误", cue_plan: "要求制定计划",
    cue_judgement: "要求作出判断", cue_analysis: "要求分析", cue_composed: "需要组织结构", cue_figures: "有数字", cue_formulas: "有公式", cue_source: "附有代码",
    cue_sum: "有算式", cue_error: "附有报错", cue_parts: "有多个部分", cue_long: "篇幅较长", cue_tools: "可能要用多个工具", cue_nothing: "没有需要思考之处", cue_sure: "模型对答案有把握",
    cue_unsure: "不思考时模型没有把握",
    semicolon: "；", badTemperature: "温度必须是 0 到 2 之间的数。", badMaxTokens: "最长回答必须是大于 0 的整数。",
    arrivalRuns: "{model} 用 {isa} 内核运行", arrivalSpeed: "按本机内存带宽最快每秒 {rate} 个 token",
    choosing: "正在选择", choiceLooking: "正在这台机器和模型站上寻找模型。现在就可以提问。",
    choiceAsked: "{name} 最适合这台机器：需下载 {size} GB，最快每秒 {rate} 个 token。在那之前由 {model} 回答。",
    choiceAskedEarly: "{name} 最适合这台机器：需下载 {size} GB，最快每秒 {rate} 个 token。先取小模型 {model}，马上就能回答。",
    choiceFetching: "正在下载 {name}", choiceMeanwhile: "这段时间由 {model} 回答。", choiceSwitched: "从现在起由 {name} 回答，替换了 {before}。",
    choiceNothing: "还没有模型。{reason}", choicePractice: "{model} 是练习模型：会写代码，不会思考；由第三方上传，用 sha256 固定。",
    choiceYes: "下载", choiceNo: "暂不", choiceOthers: "其他模型", choiceRead: "知道了", choiceMore: "更多模型",
    offersText: "来自模型站。带 ≈ 的大小由模型形状算出，下载前会先向模型站核对文件是否存在。速度是这台机器的内存所能达到的上限。",
    offerFacts: "需下载 {size} GB，最快每秒 {rate} 个 token", offerSuits: "适合这台机器", offerSlow: "在这里偏慢", offerLarge: "放不下：需要 {size} GB 内存", fetch: "下载",
    troubles: "在这块硬盘上，但不能用：", choosePath: "服务所在机器上的 .gguf 文件或检查点目录", chooseFolder: "存放模型的文件夹", chooseMirror: "模型站的镜像", take: "使用", look: "去那里找", tryMirror: "试一试",
    suggestion1: "用一个例子向十二岁的孩子解释递归。", suggestion2: "写一个 Python 函数，合并两个有序列表。",
    suggestion3: "翻译成英文：会议改到星期五上午十点。", suggestion4: "发布一个小型网络服务之前，我应该检查什么？",
  },
};

/** What the service says in English, by the code that it gives with it; where people need its details, they follow. */
const reasons = {
  zh: {
    context_length_exceeded: "这段对话和回答放不进模型的窗口。请缩短消息，或开始新对话。",
    insufficient_memory: "内存不够，装不下这个模型。请卸载其他模型，或换一个更小的。", model_not_found: "没有这个模型。",
    model_stays: "这个模型卸载后无法再次加载，所以保留。", model_loading: "模型还没有就绪，请稍后再试。",
    download_failed: "模型没有下载成功：{message}", model_format: "模型文件有问题：{message}", unsupported_model: "不支持这种模型：{message}",
    offline: "设置了离线，不会联网下载模型。请给出本机上模型的路径，或在联网后重试。",
    hub_unreachable: "连不上模型站。请检查网络，指定一个镜像，或给出本机上模型的路径。",
    index_unreachable: "连不上软件包索引。请检查网络，给 pip 指定镜像，或给出本机上模型的路径。",
    hub_without_model: "模型站没有这个模型，或没有对你开放。请换一个模型，指定另一个镜像，或给出本机上模型的路径；私有的模型要设置 HF_TOKEN。",
    hub_terms: "这个模型只提供给同意其条款的人：请在模型站上同意，再把 HF_TOKEN 设为你的令牌。",
    download_interrupted: "下载中断了，已下载的部分会保留，重试时接着下载。", download_damaged: "下载的文件和公布的摘要不一致，没有采用。请重试。",
    disk_full: "磁盘空间不够。请腾出空间，或用 QWENBOX_CACHE_DIR 指定别的文件夹。", not_fetched: "按你的决定没有下载。", model_incomplete: "模型不完整：{message}",
    request_timeout: "用时超过了服务允许的时间。", worker_died: "模型的进程意外中断，正在重新启动。请重试。",
    poisoned_request: "处理这条消息时模型的进程两次中断，不再尝试。", engine_closed: "服务正在停止。", internal_error: "服务内部出错，原因见它的日志。",
    archive_full: "对话没能写入磁盘。请腾出空间，已确认的内容都还在。", archive_damaged: "保存对话的文件已损坏：{message}",
    archive_busy: "另一个程序占用着对话文件，请重试。", answer_under_way: "这个对话正在回答，请先停止那个回答。",
    conversation_full: "这个对话的消息太多了，请开始新对话。", conversation_not_found: "没有这个对话，它可能已被删除。",
    not_from_here: "文件、文件夹和镜像只能在服务所在的机器上指定：在那里的浏览器里打开 127.0.0.1 上的这个页面。",
    no_conversation: "不是对话", unknown_export: "不是 qwenbox、ChatGPT 或 Open WebUI 导出的", newer_export: "由更新版本的 qwenbox 导出，请先升级",
    too_many_conversations: "一次放不下这么多对话",
  },
};

let language = "en";

export function currentLanguage() { return language; }

export function t(key, values = {}) {
  const text = texts[language][key];
  if (text === undefined) throw new Error(`no text for ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** Why the service has refused something, {message, code}, in this language as far as the page knows it. */
export function reason({ message, code }) {
  return reasons[language]?.[code]?.replace("{message}", message) ?? message;
}

/** A number as people of this language write it. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/** Seconds to come, as roughly as people want to know. */
export function timeLeft(seconds) {
  return seconds < 90 ? t("secondsLeft", { count: Math.ceil(seconds) }) : t("minutesLeft", { count: Math.round(seconds / 60) });
}

/** Chooses the language and writes its sentences into every element that names one. */
export function setLanguage(name) {
  language = name in texts ? name : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  for (const node of document.querySelectorAll("[data-i18n-placeholder]")) node.placeholder = t(node.dataset.i18nPlaceholder);
  for (const node of document.querySelectorAll("[data-i18n-label]")) {
    node.setAttribute("aria-label", t(node.dataset.i18nLabel));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.i18nLabel);
  }
}
