"""The settings' and the exit codes' meanings in Chinese, for README.zh-CN.md.

By the English text and not by the name: a meaning that changes has no translation until somebody makes one, so
none can go stale without a test that fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "engine to run": "要运行的引擎",
        "port of the engine, on 127.0.0.1": "引擎在 127.0.0.1 上监听的端口",
        "port the sidecar listens on": "sidecar 监听的端口",
        "address to listen on; empty: all interfaces, IPv4 and IPv6 (`up`: 127.0.0.1)": (
            "监听地址；留空表示所有网卡，IPv4 与 IPv6（`up`：127.0.0.1）"
        ),
        "path or hub id given to the engine": "交给引擎的模型路径或 hub id",
        "human name of the model, label `model_name` of metrics; default: last part of `MODEL_PATH`": (
            "给人看的模型名，也是指标标签 `model_name` 的值；默认取 `MODEL_PATH` 的最后一段"
        ),
        "name clients use; unset: the engine's own choice (vLLM: the path)": (
            "客户端使用的模型名；不设则由引擎决定（vLLM 用路径）"
        ),
        "tensor parallel size": "张量并行数",
        "context length, tokens": "上下文长度，单位 token",
        "sequences the engine runs at once": "引擎同时处理的序列数",
        "let the engine run Python code that comes with the model": "允许引擎执行模型自带的 Python 代码",
        "further engine arguments, shell-quoted (a list in YAML); they win over ours, except host and port": (
            "追加给引擎的参数，按 shell 规则加引号（YAML 里是列表）；与我们的参数冲突时以它为准，主机和端口除外"
        ),
        "variables the launch script exports; never secrets: those belong in the engine container's own `env`": (
            "启动脚本导出的变量；不要放密钥，密钥应写在引擎容器自己的 `env` 里"
        ),
        "file with the key the engine itself asks for": "引擎自身要求的密钥所在的文件",
        "directory shared with the engine container": "与引擎容器共享的目录",
        "file with one client API key a line; unset: no key is asked for": (
            "存放客户端 API key 的文件，每行一个；不设则不校验"
        ),
        "ask for an API key at `/metrics` too, when there are keys": "设了 key 时，`/metrics` 也要求 API key",
        "web pages of these origins may send requests from a browser": "允许这些源的网页从浏览器发来请求",
        "forward the engine's administration paths": "转发引擎的管理路径",
        "forward paths we do not know": "转发未知的路径",
        "requests forwarded at once, more get 429; 0: no limit": "同时转发的请求数，超出的返回 429；0 表示不限",
        "largest request body, larger ones get 413": "请求体的最大长度，超出的返回 413",
        "client connections at once, at the cap the one idle longest goes; 0: what the file descriptors allow": (
            "同时存在的客户端连接数，到上限时断开空闲最久的一个；0 表示由文件描述符上限决定"
        ),
        "time for a request's head to come": "等待请求头到齐的时间",
        "time spent waiting for a request's body, and a second more for each 500 bytes of it that came": (
            "等待请求体的时间，每收到 500 字节再宽限 1 秒"
        ),
        "a connection without a request is closed after so long; longer than the load balancer in front keeps it": (
            "没有请求的连接保持多久后关闭；应长于前面负载均衡器的保持时间"
        ),
        "time to connect to the engine": "连接引擎的时限",
        "time to the engine's first byte (a long prefill is silent)": "等待引擎首字节的时限（长 prefill 期间没有输出）",
        "silence allowed between two bytes of an answer": "响应的两个字节之间允许的静默时间",
        "a client that reads nothing for so long, or whose machine answers nothing, is cut": (
            "客户端这么久不读取数据，或其主机毫无应答，就断开"
        ),
        "time for the engine's own `/metrics` page; later, ours is served without it": (
            "抓取引擎自身 `/metrics` 的时限；超时则只给出我们自己的指标"
        ),
        "longest page of the engine's that is taken": "可接受的引擎指标页的最大长度",
        "time between two health probes of the engine when ready; at most a second while it loads": (
            "引擎就绪后两次健康探测的间隔；加载期间不超过 1 秒"
        ),
        "time for one probe's answer": "单次探测等待响应的时限",
        "failed probes in a row that make a ready engine unhealthy": "就绪的引擎连续探测失败几次后视为不健康",
        "good probes in a row that make an engine ready": "连续探测成功几次后视为就绪",
        "loading without any progress for so long is a failure": "加载期间这么久毫无进展即视为失败",
        (
            "a ready engine that holds requests, sends no byte and whose own counters stand still for so long is "
            "unhealthy, whatever its health path says; needs the engine's metrics"
        ): (
            "就绪的引擎手上有请求，却这么久不发一个字节、自身计数器也不动，则不论其健康接口怎么说都视为不健康；"
            "依赖引擎的指标"
        ),
        "`/livez/engine` fails when a once ready engine has been unhealthy for so long": (
            "曾经就绪的引擎不健康持续这么久后，`/livez/engine` 判为失败"
        ),
        "`/livez/engine` fails when an engine that was never ready has been failed for so long": (
            "从未就绪的引擎失败持续这么久后，`/livez/engine` 判为失败"
        ),
        "time to keep serving after a stop was asked for, while endpoints are being removed": (
            "收到停止请求后继续服务的时间，此时 endpoint 正在被摘除"
        ),
        "time for requests in flight to finish after the quiet period": "静默期之后，留给在途请求完成的时间",
        "time the engine has to end after SIGTERM before its process group is killed": (
            "引擎收到 SIGTERM 后退出的时限，超时则杀掉整个进程组"
        ),
        "the pod's terminationGracePeriodSeconds; at least the three above together and 10 s more": (
            "Pod 的 terminationGracePeriodSeconds；至少是上面三项之和再加 10 s"
        ),
        "event loop to run on; uvloop takes about half the CPU": "使用的事件循环；uvloop 的 CPU 占用约为一半",
        "form of our own log lines": "我们自己日志的格式",
        "least important log line shown": "输出日志的最低级别",
        "one log line for each forwarded request": "每个转发的请求记一行日志",
    }
)

EXIT_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "done; `serve` and `up`: stopped because somebody asked for it": "完成；`serve` 与 `up`：应要求停止",
        "could not go on, or an answer was not complete; the last lines say why": (
            "无法继续，或某个回答不完整；最后几行说明原因"
        ),
        "wrong configuration or arguments: nothing was started or written, one line for each mistake": (
            "配置或参数有误：什么都没启动，也没写入，每个错误一行"
        ),
        "ended at once by Ctrl-C (SIGINT): the first one of `check` and `render`, the second one of `up`": (
            "被 Ctrl-C（SIGINT）立即终止：`check` 与 `render` 是第一次，`up` 是第二次"
        ),
        "nobody reads the output any more, as after `head -1` took its line": (
            "输出已没有人读，例如 `head -1` 取走了它那一行之后"
        ),
        "ended at once by SIGTERM before anything was started, or `serve` by a second signal": (
            "在启动任何东西之前被 SIGTERM 立即终止，或 `serve` 收到第二个信号"
        ),
    }
)

# What a value may be, as `config.kinds` says it.
_ALLOWED: Final[tuple[tuple[str, Callable[[re.Match[str]], str]], ...]] = (
    (r"one of (.+)", lambda found: f"{found[1].replace(', ', '、')} 之一"),
    (r"a whole number from (\S+) to (\S+)", lambda found: f"{found[1]} 到 {found[2]} 的整数"),
    (
        r"a number of seconds from (\S+) to ([^\s,]+)(, or off)?",
        lambda found: f"{found[1]} 到 {found[2]} 的秒数{'，或 off' if found[3] else ''}",
    ),
    (
        r"a number of bytes from (\S+) to (\S+), such as (\S+) or (\S+)",
        lambda found: f"{found[1]} 到 {found[2]} 的字节数，如 {found[3]} 或 {found[4]}",
    ),
    (r"true or false \(or (.+)\)", lambda found: f"true 或 false，也可写 {found[1].replace(', ', '、')}"),
    (r"arguments, quoted as in a shell", lambda _: "按 shell 规则加引号的参数"),
    (r"a mapping of variable names to texts", lambda _: "从变量名到文本的映射"),
    (r"origins such as (\S+), separated by spaces, or \*", lambda found: f"形如 {found[1]} 的源，以空格分隔，或 *"),
)


def allowed(english: str) -> str:
    """Return what a value may be, in Chinese."""
    for pattern, said in _ALLOWED:
        if found := re.fullmatch(pattern, english):
            return said(found)
    raise KeyError(english)
