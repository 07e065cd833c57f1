# The test handler in bash, for the bootstraps of examples/bash: put it beside the file
# bootstrap and choose test_handler.handle. The event says what to do (../../README.md).
# shellcheck shell=bash
# shellcheck disable=SC2034 # the bootstrap reads ERROR_TYPE and ERROR_MESSAGE

invocations=0

member() { # NAME: the value of that member of the instruction, empty if there is none
  local LC_ALL=C string="\"$1\":\"([^\"]*)\"" number="\"$1\":([0-9.]+)"
  [[ $instruction =~ $string || $instruction =~ $number ]] || return
  printf '%s' "${BASH_REMATCH[1]}"
}

context() {
  printf '{"request_id":"%s"' "$REQUEST_ID"
  [[ -z $MEMORY_MB ]] || printf ',"memory_mb":%s' "$MEMORY_MB"
  [[ -z $TIME_LIMIT_MS ]] || printf ',"time_limit_ms":%s' "$TIME_LIMIT_MS"
  [[ -z $FUNCTION_NAME ]] || printf ',"function_name":"%s"' "$FUNCTION_NAME"
  printf '}'
}

handle() { # the event is in the file $1
  ((invocations += 1))
  [[ $(head -c 7 "$1" | tr -d '\0') == '{"do":"' ]] || { cat "$1"; return; }
  local instruction word
  instruction=$(tr -d '\0' <"$1")
  word=$(member 'do')
  case $word in
    echo) member text ;;
    raise) ERROR_TYPE=$(member type); ERROR_MESSAGE=$(member message); return 1 ;;
    sleep) sleep "$(member seconds)"; printf slept ;;
    exit) exit "$(member status)" ;;
    print) printf '%s\n' "$(member text)" >&2; printf printed ;;
    size) head -c "$(member bytes)" /dev/zero | tr '\0' x ;;
    context) context ;;
    env) printf '%s' "$(printenv "$(member name)")" ;;
    count) printf '%s' "$invocations" ;;
    *) ERROR_TYPE=Unsupported ERROR_MESSAGE="no such instruction: $word"; return 1 ;;
  esac
}
