# The handler of this sample: answers with the event and says where it has been.
# shellcheck shell=bash
handler() { # the event is in the file $1
  echo "request $REQUEST_ID: $(wc -c <"$1") bytes" >&2
  printf "Echoing request: '"
  cat "$1"
  printf "'\n"
}
