package main

import "fmt"

// Handle is the handler of this sample: it answers with the event. An error that it
// returns fails the invocation; a *Failure names its type, too.
func Handle(ctx Context, event []byte) ([]byte, error) {
	return fmt.Appendf(nil, "Echoing request: '%s'\n", event), nil
}
