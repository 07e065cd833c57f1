# The test handler in bash, for the bootstraps of examples/bash: put it beside the file
# bootstrap and choose test_handler.handle. The event says what to do (../../README.md).
# shellcheck shell=bash

bootstrap_id=$BASHPID
trap 'exit $?' USR1 # so the bootstrap ends as the handler did

member() { # NAME: put the value of that member of the instruction into value, if any
  local LC_ALL=C string="\"$1\":\"([^\"]*)\"" number="\"$1\":([0-9.]+)"
  value=
  [[ $instruction =~ $string || $instruction =~ $number ]] || return
  value=${BASH_REMATCH[1]}
}

context() {
  printf '{"request_id":"%s"' "$REQUEST_ID"
  [[ -z $MEMORY_MB ]] || printf ',"memory_mb":%s' "$MEMORY_MB"
  [[ -z $TIME_LIMIT_MS ]] || printf ',"time_limit_ms":%s' "$TIME_LIMIT_MS"
  [[ -z $FUNCTION_NAME ]] || printf ',"function_name":"%s"' "$FUNCTION_NAME"
  printf '}'
}

handle() { # the event is in the file $1
  local begin instruction value
  IFS= read -r -d '' -n 7 begin <"$1" # up to a zero byte, which no variable holds
  [[ $begin == '{"do":"' ]] || { cat "$1"; return; }
  IFS= read -r -d '' instruction <"$1"
  member 'do'
  case $value in
    echo) member text; printf '%s' "$value" ;;
    raise)
      local type
      member type; type=$value
      member message; _fail "$type" "$value" ;;
    sleep) member seconds; sleep "$value"; printf slept ;;
    exit) member status; kill -USR1 "$bootstrap_id"; exit "$value" ;;
    print) member text; printf '%s\n' "$value" >&2; printf printed ;;
    size) member bytes; head -c "$value" /dev/zero | tr '\0' x ;;
    context) context ;;
    env) member name; printf '%s' "$(printenv "$value")" ;;
    count) printf '%s' "$INVOCATION" ;;
    *) _fail Unsupported "no such instruction: $value" ;;
  esac
}
