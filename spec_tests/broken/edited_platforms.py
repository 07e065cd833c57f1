# edited_platforms.py: platforms that break one rule each by a few other words (MIT).
"""Say what stands in a platform file, and what else would be wrong there.

EDITED are broken, UNUSUAL break no rule. Each row has a name, the protocol, the rule that is broken, the words (which stand in the
file once), others for them, and perhaps more of such pairs. `fc!` and the like are edits of emulator.py, for what the
small platforms leave out. platforms.py runs them.
"""

from typing import Tuple

Edit = Tuple[str, ...]
LATE = 'subprocess.Popen(["sh", "-c", "sleep 0.3; exec cat >&2"], stdin=-1).stdin'

EDITED: Tuple[Edit, ...] = (
    # -- start, environment --
    ("env_of_the_platform_wins", "fg", "any.env.user",
     "env.update(self.function.env)", "env = {**self.function.env, **env}"),
    ("strips_variables", "scf", "any.env.user", 'dict(pair.partition("=")[::2]',
     'dict(pair.strip().partition("=")[::2]'),
    ("reserves_too_much", "fc", "any.env.user", '("FC_",)', '("FC",)'),
    ("env_size_without_names", "scf", "any.env.size",
     "os.fsencode(name + value)", "os.fsencode(value)"),
    ("env_size_in_characters", "fg", "any.env.size",
     "len(os.fsencode(name + value))", "len(name + value)"),
    ("env_size_off_by_one", "fc", "any.env.user", "size > MAX_ENV_BYTES",
     "size >= MAX_ENV_BYTES"),
    ("any_name_will_do", "fc", "any.env.names",
     'not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)', 'not re.match("[A-Za-z]", name)'),
    ("a_group_for_all", "fg", "any.process.group", ", start_new_session=True", ""),
    ("no_cpu", "fg", "fg.env.table", "200 + 100 *", "100 *"),
    ("code_root_without_slash", "scf", "scf.env.documented", '"{code_root}/"',
     '"{code_root}"'),
    ("no_version", "fc", "fc.env.table", '"FC_FUNCTION_VERSION", "{version}"',
     '"FC_FUNCTION_VERSION", ""'),
    ("all_entries_executable", "scf!", "any.package.mode", "& 0o777 or 0o644", "| 0o755"),
    ("links_in_packages", "fc!", "any.package.zip",
     "kind not in (0, stat.S_IFREG, stat.S_IFDIR)", "False"),
    # -- HTTP --
    ("one_chunk_alone", "scf", "any.http.body", "while size:\n", "if size:\n"),
    ("decimal_chunk_sizes", "fg", "any.http.body", '(b";")[0], 16)', '(b";")[0])'),
    ("no_chunk_extensions", "scf", "any.http.body", '.partition(b";")[0]', ""),
    ("chunked_in_one_case", "fg", "any.http.body",
     '.get("Transfer-Encoding", "").lower()', '.get("Transfer-Encoding", "")'),
    ("chunks_of_64_KiB", "scf", "any.http.body", "self.rfile.read(size))",
     "self.rfile.read(min(size, 65536)))"),
    ("bodies_of_64_KiB", "fg", "any.result.bytes", "            return body\n        parts",
     "            return body[:65536]\n        parts"),
    ("half_a_body_will_do", "scf", "any.http.no-effect", "if len(body) != size:",
     "if False:"),
    ("a_lost_chunk_will_do", "fg", "any.http.no-effect",
     "size = int(self.rfile.readline(65537)", "size = int(b'0' + self.rfile.readline(65537)"),
    ("closes_after_a_hundred", "fg", "any.http.reuse", "self.close_connection = True\n"
     "        try:", "self.close_connection = True\n        self.count = getattr(self, "
     "'count', 0) + 1\n        if self.count > 100:\n            return\n        try:"),
    ("closes_idle_connections", "scf", "any.http.reuse", '    server: Instance\n',
     '    server: Instance\n    timeout = 0.3\n'),
    ("continues_in_one_case", "fg", "any.http.continue", "    def read_head(self)",
     "    def handle_expect_100(self) -> bool:\n        return self.headers['expect'][4:5] "
     "!= '-' or self.headers['expect'][5] != 'c' or super().handle_expect_100()\n\n"
     "    def read_head(self)"),
    ("closes_after_errors", "scf", "any.http.reuse",
     "        action, request_id, event = self.server.receive(", "        if call == 'error':\n"
     "            self.close_connection = True\n"
     "        action, request_id, event = self.server.receive("),
    ("ids_in_any_case", "fg", "fg.result.unknown-id", "request_id != self.request_id",
     "request_id.lower() != self.request_id"),
    ("no_length_of_refusals", "fg", "any.http.length",
     '(*fields, ("Content-Length", str(len(body)))):', '(*fields, *([("Content-Length", '
     'str(len(body)))] if status == 200 else [("Connection", "close")])):'),
    ("prefixes_will_do", "scf", "any.api.unknown", "if (method, path) in ENDPOINTS:",
     "path = next((one for _, one in ENDPOINTS if path.startswith(one)), path)\n"
     "    if (method, path) in ENDPOINTS:"),
    ("paths_in_any_case", "scf", "any.api.unknown", 'path = target.partition("?")[0]\n',
     'path = target.partition("?")[0].lower()\n'),
    ("head_is_get", "fg", "any.api.unknown", 'path = target.partition("?")[0]\n',
     'path = target.partition("?")[0]\n    method = method.replace("HEAD", "GET")\n'),
    ("methods_do_not_matter", "scf", "any.api.unknown", '405 if any(', '404 if any('),
    ("refuses_before_it_reads", "scf", "any.api.unknown", "            if self.read_head():\n",
     "            if self.read_head() and not find_call(self.command, self.path)[0]:\n"
     "                self.close_connection = True\n                self.refuse(find_call("
     "self.command, self.path)[2], '')\n            elif self.headers:\n"),
    ("heads_of_8_KiB", "fg", "any.limits.head", "            lines.append(self.rfile.readline("
     "65537))", "            lines.append(self.rfile.readline(65537))\n            if sum(map("
     "len, lines)) > 8192:\n                raise OSError"),
    # -- events and results --
    ("event_size_in_characters", "scf", "any.event.size", "len(event) > function.event_bytes",
     "len(event.decode('utf-8', 'replace')) > function.event_bytes"),
    ("event_size_off_by_one", "fc", "any.event.size",
     "len(request.body) > self.function.event_bytes",
     "len(request.body) >= self.function.event_bytes"),
    ("events_of_10_MB", "fg", "any.event.size", '(6 * MIB, "--max-event")',
     '(10 * MIB, "--max-event")'),
    ("results_of_10_MB", "scf", "any.result.size", '(6 * MIB, "--max-result")',
     '(10 * MIB, "--max-result")'),
    ("result_size_off_by_one", "fg", "any.result.size",
     "len(body) > self.function.result_bytes", "len(body) >= self.function.result_bytes"),
    ("events_of_1_MB", "scf", "any.event.bytes", "self.answer(200, event,",
     "self.answer(200, event[:1000000],"),
    ("outcomes_come_late", "scf", "any.result.at-once", "        facts = dict(self.facts, "
     "request_id=self.request_id", "        time.sleep(0.6)\n        facts = dict(self.facts, "
     "request_id=self.request_id"),
    ("outcomes_come_late_fc", "fc", "any.result.at-once",
     '        self.session.move("settled")', '        time.sleep(0.6)\n        '
     'self.session.move("settled")'),
    ("closes_at_the_end", "scf", "any.result.first", "        while not self.has_ended or "
     "select.select([self], [], [], 0)[0]:", "        while not self.has_ended:"),
    ("closes_at_the_end_fg", "fg", "any.result.first", "        while not self.has_ended or "
     "select.select([self], [], [], 0)[0]:", "        while not self.has_ended:"),
    ("another_id_each_time", "scf", "scf.next.same-event",
     "self.server.facts, request_id=request_id)", "self.server.facts, request_id=new_id())"),
    ("ready_is_a_space", "scf", "scf.ready.first", '        if action == "hold":\n',
     '        if call == "ready" and body != b" ":\n            action = "overflow"\n'
     '        if action == "hold":\n'),
    ("drops_held_polls", "scf", "scf.next.blocks", "                self.changed.wait()\n",
     "                if not self.changed.wait(0.3):\n                    break\n"),
    ("drops_held_polls_fg", "fg", "fg.request.blocks", "                self.changed.wait()\n",
     "                if not self.changed.wait(0.3):\n                    break\n"),
    ("empty_answers_with_id", "fg", "fg.request.empty",
     "            self.close_connection = True  # the instance has ended\n",
     "            self.answer(204, fields=[('X-Cff-Request-Id', new_id())])\n",
     "                self.changed.wait()\n", "                if not self.changed.wait(0.1):\n"
     "                    break\n"),
    ("half_an_id_will_do", "fg", "fg.result.unknown-id", "request_id != self.request_id",
     "not self.request_id.startswith(request_id)"),
    # -- limits --
    ("limits_in_whole_seconds", "scf", "any.limits.clock",
     "                        function.timeout_s)", "                        "
     "int(function.timeout_s))"),
    ("one_limit_for_both", "fg", "any.limits.clock", "self.started + function.init_timeout_s",
     "self.started + function.timeout_s"),
    ("initialises_for_ever", "scf", "any.init.timeout",
     "self.started + function.init_timeout_s", "self.started + 3600"),
    ("limits_come_late", "fg", "any.outcome.one", "                        "
     "function.timeout_s)", "                        function.timeout_s + 2.5)"),
    ("limit_of_the_cloud", "scf", "any.event.timeout",
     "                        function.timeout_s)", "                        "
     "min(0.3, function.timeout_s))"),
    ("memory_of_the_leader", "scf!", "any.memory.limit",
     "    for number, group in group_members():\n        if group in sizes:",
     "    for number, group in group_members():\n        if number in sizes:"),
    ("last_come_first_served", "fg!", "any.queue.order",
     "self.queue.insert(0 if first else waiting, invocation)",
     "self.queue.insert(0, invocation)"),
    ("queue_off_by_one", "fc!", "any.queue.limit", "waiting >= function.queue + soon",
     "waiting + 1 >= function.queue + soon"),
    ("one_instance_too_many", "scf!", "any.instance.on-demand",
     "len(self.instances) < function.max_instances and",
     "len(self.instances) < function.max_instances + (function.max_instances > 1) and"),
    # -- the process --
    ("kills_at_the_stop", "scf", "any.stop.order", "self.signal(signal.SIGTERM)",
     "self.signal(signal.SIGKILL)"),
    ("kills_at_the_stop_fc", "fc", "any.stop.order", "self.signal(signal.SIGTERM)",
     "self.signal(signal.SIGKILL)"),
    ("stops_the_leader", "fc", "any.stop.order", "self.signal(signal.SIGTERM)",
     "os.kill(self.process.pid, signal.SIGTERM)"),
    ("stops_the_leader_fg", "fg", "any.stop.order", "self.signal(signal.SIGTERM)",
     "os.kill(self.process.pid, signal.SIGTERM)"),
    ("has_no_grace", "scf", "any.stop.order", "self.serving.join(self.function.grace_s)",
     "self.serving.join(0.01)"),
    ("leaves_what_ignores_sigterm", "fg", "any.process.group",
     "        self.signal(signal.SIGKILL)  # [any.process.group]\n", ""),
    ("ends_the_leader", "fc", "any.time.kill",
     "        self.signal(signal.SIGKILL)\n        self.ended.wait()",
     "        self.facts['killed'] = '1'\n        self.process.kill()\n        self.ended.wait()",
     "        self.signal(signal.SIGKILL)  # [any.process.group]",
     "        if 'killed' not in self.facts:\n            self.signal(signal.SIGKILL)"),
    ("ends_with_grace", "scf", "any.time.kill",
     "self.signal(signal.SIGKILL)  # [any.time.kill]",
     "self.grace_ends = self.signal(signal.SIGTERM) and time.monotonic() + "
     "function.grace_s"),
    ("freezes_the_leader", "fc", "fc.freeze.idle", "self.signal(signal.SIGSTOP)",
     "os.kill(self.process.pid, signal.SIGSTOP)"),
    ("thaws_the_leader", "fc", "fc.freeze.thaw", "                self.signal(signal.SIGCONT)\n"
     "            answer", "                os.kill(self.process.pid, signal.SIGCONT)\n"
     "            answer"),
    ("hook_before_the_first_freeze", "fc", "fc.freeze.hook", "        if function.pre_freeze and",
     "        is_first, self.facts['hook'] = 'hook' not in self.facts, ''\n"
     "        if is_first and function.pre_freeze and"),
    ("waits_for_pre_freeze", "fc", "fc.freeze.hook", "function.pre_freeze_timeout_s)", "3600)"),
    ("waits_for_pre_stop", "fc", "fc.stop.hook", "self.function.pre_stop_timeout_s)", "3600)"),
    ("sigterm_before_the_hook", "fc", "fc.stop.order", "                self.signal("
     "signal.SIGCONT)\n                if", "                self.signal(signal.SIGTERM)\n"
     "                self.signal(signal.SIGCONT)\n                if"),
    ("loses_stderr_fc", "fc", "any.log.streams", "stdout=2, stderr=2", "stdout=2, stderr=-3"),
    ("log_comes_late", "fg", "any.log.streams", "stdout=2, stderr=2",
     f"stdout={LATE}, stderr=-2"),
    ("log_begins_with_the_event", "scf", "any.log.first", "stdout=2, stderr=2",
     f"stdout={LATE}, stderr=-2"),
    # -- what callers see --
    ("true_is_false", "fg", "fg.outcome.document", '"false" if kind == "ok" else "true"',
     '"false"'),
    ("no_code_for_callers", "fg", "fg.outcome.document",
     '("X-Func-Err-Code", code)', '("X-Func-Err-Code", "0")'),
    ("failures_are_500", "fg", "fg.outcome.document", '"exit": (200,', '"exit": (500,'),
    ("stack_trace_in_parts", "scf", "scf.outcome.document",
     'body.decode("utf-8", "replace")', 'body.decode("utf-8", "replace").split()'),
    ("not_executable_is_missing", "scf", "scf.outcome.document",
     '"Bootstrap not executable"', '"Bootstrap not exist"'),
    ("no_id_for_callers", "fc", "fc.headers.caller-id",
     '(("X-Fc-Request-Id", facts["request_id"]),)', '()'),
    ("timeouts_are_200", "fc", "fc.outcome.document", "status = 502 if is_http else 200",
     "status = 200"),
    ("errors_of_one_type", "fc", "fc.outcome.document", '"InitializationError",\n'
     '                     "Init', '"InvocationError",\n                     "Init'),
    ("rounds_limits_down", "fg", "fg.env.table", "max(1, math.ceil(function.timeout_s))",
     "max(1, int(function.timeout_s))"),
    ("rounds_limits_down_fc", "fc", "fc.headers.common",
     "max(1, math.ceil(function.timeout_s))", "max(1, int(function.timeout_s))"),
    ("limits_with_zeros", "scf", "any.event.timeout", ' timeout="%g"', ' timeout="%.1f"'),
    ("exits_without_code", "fc", "fc.outcome.document", "unexpectedly(code %d%s)",
     "unexpectedly(exit %d%s)"),
    ("exits_without_memory", "fc", "fc.outcome.document",
     '"exit": ("InvocationError", EXITED)',
     '"exit": ("InvocationError", EXITED.partition(",")[0] + ")")'),
    # -- fc: requests --
    ("no_query", "fc", "fc.invoke.http", "(request.method, request.target,",
     "(request.method, path,"),
    ("decodes_paths", "fc", "fc.invoke.http", "(request.method, request.target,",
     "(request.method, request.target.replace('%2F', '/'),"),
    ("tidies_paths", "fc", "fc.invoke.http", "(request.method, request.target,",
     "(request.method, request.target.replace('//', '/'),"),
    ("folds_fields", "fc", "fc.invoke.http",
     "headers = pass_fields(request.headers, DROPPED_REQUEST)",
     "headers = list(dict(pass_fields(request.headers, DROPPED_REQUEST)).items())"),
    ("speaks_for_the_caller", "fc", "fc.invoke.http", "skip_accept_encoding=True",
     "skip_accept_encoding=False"),
    ("own_host", "fc", "fc.invoke.http", "skip_host=has_host", "skip_host=False"),
    ("no_body_of_delete", "fc", "fc.invoke.http", "            request = Request(event, "
          "str(document", "            event = event if document['method'] != 'DELETE' else b"
          "''\n            request = Request(event, str(document"),
    ("timeout_in_ms_fc", "fc", "fc.headers.common", '"X-Fc-Function-Timeout", "{timeout_',
     '"X-Fc-Function-Timeout", "000{timeout_'),
    ("base_path_with_query", "fc", "fc.headers.common", "base_path=path",
     "base_path=request.target"),
    ("leaves_out_what_is_empty", "fc", "fc.headers.empty", "fill_in(HEADERS, facts):",
     "[one for one in fill_in(HEADERS, facts) if one[1]]:"),
    ("hooks_are_invocations", "fc", "fc.invoke.control-path", "else path)\n", "else '/invoke')\n"),
    ("reserved_in_one_case", "fc", "fc.headers.reserved-request",
     'not name.lower().startswith("x-fc-")', 'not name.startswith("X-Fc-")'),
    ("reserved_in_lower_case", "fc", "fc.headers.reserved-response",
     "if name.lower() not in dropped and", "if name not in dropped and"),
    ("drops_its_likes", "fc", "fc.http.pass", '.startswith("x-fc-")', '.startswith("x-fc")'),
    ("lets_values_through", "fc", "any.security.values",
     "            connection.putheader(name, value)", "            connection._buffer.append("
     "('%s: %s' % (name, value)).encode('latin-1'))"),
    ("id_without_time", "fc", "fc.id.form", "int(time.time())", "1"),
    ("path_without_query", "fc", "fc.limits.request", "if len(target) > function.path_bytes",
     "if len(target.partition('?')[0]) > function.path_bytes"),
    ("head_without_names", "fc", "fc.limits.request", "sum(len(name) + len(value)",
     "max(len(value)"),
    ("path_off_by_one", "fc", "fc.limits.request", "if len(target) > function.path_bytes",
     "if len(target) >= function.path_bytes"),
    ("199_at_most", "fc", "fc.concurrency.limit", "MAX_CONCURRENCY = 200",
     "MAX_CONCURRENCY = 199"),
    # -- fc: answers, connections --
    ("interim_is_final", "fc", "fc.answer.interim", "while 101 < found[1] < 200:", "while False:"),
    ("head_has_a_body", "fc", "fc.invoke.answer", "            answer = read_answer(",
     "            connection._method = 'GET'\n            answer = read_answer("),
    ("wants_a_length", "fc", "fc.invoke.answer", "    body = response.read()\n",
     "    if response.length is None and not response.chunked:\n        raise HTTPException"
     "('no length')\n    body = response.read()\n"),
    ("any_404_over_http", "fc", "fc.answer.outcome", "status == 404 and not is_http",
     "status == 404"),
    ("folds_answers", "fc", "fc.http.pass",
     "tuple(pass_fields(answer.fields, {\"upgrade\", *DROPPED_RESPONSE}))",
     "tuple(dict(pass_fields(answer.fields, {\"upgrade\", *DROPPED_RESPONSE})).items())"),
    ("all_pages_are_200", "fc", "fc.http.pass", "status = answer.status  #", "status = 200  #"),
    ("renders_answers", "fc", "fc.http.pass", "    return Answer(response.status, fields, body,",
     "    body = body.decode('utf-8', 'replace').encode()\n"
     "    return Answer(response.status, fields, body,"),
    ("a_connection_for_ten", "fc", "fc.connection.reuse", "                self.kept = connection",
     "                self.count = getattr(self, 'count', 0) + 1\n"
     "                self.kept = connection if self.count % 10 else None"),
    ("drops_idle_connections", "fc", "fc.connection.reuse",
     "connection, self.kept = self.kept or", "if time.monotonic() > getattr(self, 'last', 0) "
     "+ 0.3:\n            self.kept = None\n        self.last = time.monotonic()\n        "
     "connection, self.kept = self.kept or"),
    ("retries_whatever_it_is", "fc", "fc.connection.retry",
     "self.kept and request.method in IDEMPOTENT", "self.kept is not None"),
    ("retries_new_connections", "fc", "fc.connection.retry",
     "self.kept and request.method in IDEMPOTENT", "request.method in IDEMPOTENT"),
    ("retries_for_ever", "fc", "fc.connection.retry",
     "            if not answer and may_retry and not is_late:",
     "            while not answer and may_retry and not is_late:"),
    ("starts_in_time_or_never", "fc", "fc.start.probe",
     "deadline = time.monotonic() + self.function.start_timeout_s",
     "deadline = time.monotonic() + min(0.3, self.function.start_timeout_s)"),
    ("reads_for_a_while", "fc", "any.event.timeout", "connection.sock.settimeout(None)",
     "connection.sock.settimeout(0.3)"),
)

IN_BASE64 = ('        line["body"] = outcome.body.decode()\n',
             "        b'\\xff'.decode()\n")
UNUSUAL: Tuple[Edit, ...] = (
    ("ids_of_capitals", "scf", "", "str(uuid.uuid4())", "uuid.uuid4().hex.upper()"),
    ("version_1_0", "fg", "", "        self.send_response_only(status)\n",
     "        self.protocol_version = 'HTTP/1.0'\n        self.send_response_only(status)\n"
     "        self.protocol_version = 'HTTP/1.1'\n"
     "        if not self.close_connection:\n"
     "            self.send_header('Connection', 'keep-alive')\n"),
    ("fields_in_lower_case", "scf", "", "            self.send_header(name, value)",
     "            self.send_header(name.lower(), value)"),
    ("fields_in_lower_case_fc", "fc", "", "            connection.putheader(name, value)",
     "            connection.putheader(name.lower(), value)"),
    ("more_fields", "fg", "", "        self.send_response_only(status)\n",
     "        self.send_response(status, 'Fine')\n        self.send_header('Set-Cookie', 'a=b')"
     "\n        self.send_header('X-Trace', 'a, b')\n"),
    ("more_fields_fc", "fc", "", "fill_in(HEADERS, facts):",
     "fill_in(HEADERS, facts) + [('Via', '1.1 here'), ('X-Trace', '1')]:"),
    ("answers_late", "scf", "", "        action, request_id, event = self.server.receive(",
     "        time.sleep(0.06)\n        action, request_id, event = self.server.receive(",
     "        facts = dict(self.facts, request_id=self.request_id",
     "        time.sleep(0.06)\n        facts = dict(self.facts, request_id=self.request_id"),
    ("answers_without_event", "fg", "", "                self.changed.wait()\n",
     "                if not self.changed.wait(0.05):\n                    break\n",
     "            self.close_connection = True  # the instance has ended\n",
     "            self.answer(204)\n"),
    ("base64", "scf", "", *IN_BASE64), ("base64_fc", "fc", "", *IN_BASE64),
    ("tells_no_fields", "scf", "", "    print(json.dumps(line), flush=True)",
     "    for name in ('status', 'headers', 'violations'):\n        line.pop(name)\n"
     "    print(json.dumps(line), file=sys.stderr)\n    print(json.dumps(line), flush=True)"),
    ("refuses_at_length", "fg", "", '"error_msg": message}',
     '"error_msg": message, "trace": ["here"]}'),
    ("begins_late", "fg", "", "    options = parse(", "    time.sleep(0.3)\n    options = parse("),
    ("chunked_http_invocations", "fc", "",
     '        connection.putheader("Content-Length", str(len(request.body)))\n',
     '        if request.is_http and request.body:\n            connection.putheader('
     '"Transfer-Encoding", "chunked")\n        else:\n            connection.putheader('
     '"Content-Length", str(len(request.body)))\n',
     "                connection.endheaders(request.body)\n",
     "                if request.is_http and request.body:\n                    connection."
     "endheaders(iter([request.body]), encode_chunked=True)\n                else:\n"
     "                    connection.endheaders(request.body)\n"),
    *((f"notices_ends_late_{protocol}", protocol, "", "        self.process.wait()\n",
       "        self.process.wait()\n        time.sleep(0.1)\n") for protocol in ("scf", "fg", "fc")),
    ("dials_twice", "fc", "", "                self.dial(deadline).close()\n",
     "                self.dial(deadline).close()\n                self.dial(deadline).close()\n"),
    ("results_of_any_size", "fc", "",
     "if len(body) > function.result_bytes and not request.is_http:", "if False:"),
)
