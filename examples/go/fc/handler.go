package main

import "fmt"

// Handle is the handler of this sample: it answers with the event. An error that it
// returns fails the invocation; its method ErrorType() string, if any, names its type.
func Handle(ctx Context, event []byte) ([]byte, error) {
	return fmt.Appendf(nil, "Echoing request: '%s'\n", event), nil
}
