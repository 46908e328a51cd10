// English and Chinese. The English text is the key, also of what the server says; what has no entry stays English.

const CHINESE = {
  "Wan video": "Wan 视频",
  "Skip to the prompt": "跳到提示词",
  "API key": "API 密钥",
  "Switch between light and dark": "切换浅色与深色",
  "New video": "新视频",
  "Prompt": "提示词",
  "A red circle moves left on a black background": "一个红色的圆形在黑色背景上向左移动",
  "More settings": "更多设置",
  "Negative prompt": "负面提示词",
  "What the video must not show": "视频中不应出现的内容",
  "Generate": "生成",
  "In progress": "进行中",
  "Videos": "视频",
  "Finished videos appear here.": "完成的视频显示在这里。",
  "Nothing fits the filter.": "没有符合筛选条件的视频。",
  "Show older videos": "显示更早的视频",
  "This server asks for a key. It is kept in this tab only.": "此服务器需要密钥。密钥只保存在本标签页中。",
  "Key": "密钥",
  "Use key": "使用密钥",
  "Cancel": "取消",
  "Dismiss": "关闭",
  "Again with changes": "修改后重做",
  "Download": "下载",
  "Compare": "对比",
  "Delete": "删除",
  "Search prompts": "搜索提示词",
  "Show": "显示",
  "Finished": "已完成",
  "Failed or cancelled": "失败或已取消",
  "All": "全部",
  "Download all": "全部下载",
  "Play both": "同时播放",
  "Close": "关闭",
  "Setting": "设置",
  "First": "第一个",
  "Second": "第二个",
  "All settings are the same.": "所有设置都相同。",
  "Choose a second video to compare": "请选择第二个视频进行对比",
  "Width": "宽度",
  "Height": "高度",
  "Frames": "帧数",
  "Steps": "步数",
  "Guidance": "引导强度",
  "Guidance, low noise": "引导强度（低噪声阶段）",
  "Guidance until": "引导截止",
  "Flow shift": "流偏移",
  "Sampler": "采样器",
  "Strength": "重绘强度",
  "Step cache": "步骤缓存",
  "Cache threshold": "缓存阈值",
  "Cache from": "缓存起点",
  "Cache until": "缓存终点",
  "Frames a second": "每秒帧数",
  "Seed": "随机种子",
  "Adapters": "适配器（LoRA）",
  "LoRAs from the server's directory and how strongly each acts.": "服务器目录中的 LoRA 及其强度。",
  "random": "随机",
  "In pixels.": "以像素计。",
  "Length of the video.": "视频长度。",
  "Sampler steps.": "采样步数。",
  "1: no guidance, half the work.": "1：无引导，计算量减半。",
  "Of the file; the frames stay the same.": "文件的帧率；画面不变。",
  "Same seed, same video; drawn and reported if left out.": "相同种子得到相同视频；留空则随机抽取并告知。",
  "Priority": "优先级",
  "Pictures and clips": "图片与片段",
  "Same shape as what is given": "与所给素材形状相同",
  "Drop, paste or choose": "拖放、粘贴或选择",
  "Remove": "移除",
  "Remove: {label}": "移除：{label}",
  "{label} (needed)": "{label}（必需）",
  "First picture": "首帧图片",
  "Last picture": "尾帧图片",
  "Clip": "视频片段",
  "The frame that the video begins with.": "视频开头的画面。",
  "The frame that the video ends with.": "视频结尾的画面。",
  "The clip that is changed or continued.": "要修改或续写的片段。",
  "Show previews": "显示预览",
  "Failed: {reason}": "失败：{reason}",
  "no reason given": "未说明原因",
  "Cancelled": "已取消",
  "Stopping…": "正在停止…",
  "Waiting, position {place}": "排队中，第 {place} 位",
  ", about {time} left": "，约剩 {time}",
  "{n} min": "{n} 分钟",
  "{n} s": "{n} 秒",
  "Finishing the video…": "正在完成视频…",
  "Step {step} of {steps}": "第 {step} 步，共 {steps} 步",
  "Starting…": "正在开始…",
  "Progress of {prompt}": "进度：{prompt}",
  "Frames so far of {prompt}": "已解码的画面：{prompt}",
  "Submitted": "已提交",
  "Video finished: {prompt}": "视频已完成：{prompt}",
  "Video deleted": "视频已删除",
  "{size}, {seconds} s, {steps} steps, seed {seed}": "{size}，{seconds} 秒，{steps} 步，种子 {seed}",
  "{n} videos": "{n} 个视频",
  "Packing {n} of {all}…": "正在打包 {n} / {all}…",
};

// What a rule allows.
const RULES = [
  [/^a multiple of (\d+), (\d+) to (\d+)$/, "$1 的倍数，$2 到 $3"],
  [/^(\d+n \+ 1), (\d+) to (\d+)$/, "$1，$2 到 $3"],
  [/^([\d.]+) to ([\d.]+)$/, "$1 到 $2"],
  [/^text of at most (\d+) characters$/, "最多 $1 个字符"],
];

export const language = localStorage.getItem("wan-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

// The text in the language of the page; {name} stands for values.name.
export function t(text, values = {}) {
  const said = language === "zh" ? (CHINESE[text] ?? ruled(text)) : text;
  return said.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

function ruled(text) {
  const [pattern, said] = RULES.find(([pattern]) => pattern.test(text)) ?? [text, text];
  return text.replace(pattern, said);
}

// Every text and label below a node that has a translation.
export function translate(root) {
  const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const text = node.data.trim();
    if (text) node.data = node.data.replace(text, t(text));
  }
  for (const name of ["placeholder", "aria-label", "title"]) {
    for (const node of root.querySelectorAll(`[${name}]`)) node.setAttribute(name, t(node.getAttribute(name)));
  }
  for (const template of root.querySelectorAll("template")) translate(template.content);
}

export function setUp(button) {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  button.textContent = language === "zh" ? "English" : "中文";
  button.lang = language === "zh" ? "en" : "zh-Hans";
  button.addEventListener("click", () => {
    localStorage.setItem("wan-language", language === "zh" ? "en" : "zh");
    location.reload(); // everything is stored on the server
  });
  translate(document.documentElement);
}
