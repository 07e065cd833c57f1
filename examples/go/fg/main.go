// A custom runtime for Huawei FunctionGraph. It fetches one event after the other,
// gives it to Handle (handler.go) and posts the result or the error.
//
//	(cd examples/go/fg && CGO_ENABLED=0 go build -o bootstrap)
//	python3 reference/emulator.py fg examples/go/fg --event '{"key1": "value1"}'
//
// Variables: RUNTIME_API_ADDR (the runtime API), RUNTIME_FUNC_NAME, RUNTIME_MEMORY (in
// MB), RUNTIME_TIMEOUT (in s).
// Exit status: 0 after SIGTERM, which an idle bootstrap obeys at once; an event that is
// being handled is answered first. A platform that cannot be reached is asked again.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	pathNext       = "/v1/runtime/invocation/request"
	pathResponse   = "/v1/runtime/invocation/response/" // and the request id
	pathError      = "/v1/runtime/invocation/error/"    // and the request id
	fieldRequestID = "X-Cff-Request-Id"

	firstPause = 50 * time.Millisecond // [any.poll.pause]
	lastPause  = 2 * time.Second       // [any.poll.pause]
)

// Context tells the handler about its invocation; 0 and "" mean that it is not known.
type Context struct {
	RequestID, FunctionName string
	MemoryMB, TimeLimitMS   int
}

// Failure is what the platform is told about a failed invocation. [any.error.document]
type Failure struct {
	ErrorType    string   `json:"errorType"`
	ErrorMessage string   `json:"errorMessage"`
	StackTrace   []string `json:"stackTrace"`
}

var base = "http://" + os.Getenv("RUNTIME_API_ADDR")

// client has no time limit, since next is a long poll [fg.request.no-timeout]; it
// goes past any proxy and follows no redirection, which is no event [any.poll.retry].
var client = http.Client{
	Timeout:       0,
	Transport:     &http.Transport{Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return errNoEvent },
}

var errNoEvent = errors.New("no event")

func main() {
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	run(stop)
}

// run handles one event after the other until stop is done.
func run(stop context.Context) {
	pause := firstPause
	for stop.Err() == nil {
		ctx, event, err := next(stop)
		switch {
		case err == nil:
			answer(ctx, event)
			pause = 0
		case err == errNoEvent:
			pause = firstPause
		case stop.Err() == nil:
			log.Printf("get next invocation: %v", err)
			pause = min(max(2*pause, firstPause), lastPause)
		}
		select {
		case <-stop.Done():
		case <-time.After(pause):
		}
	}
}

// next returns the next event. It blocks until there is one, or stop is done.
func next(stop context.Context) (ctx Context, event []byte, err error) {
	request, err := http.NewRequestWithContext(stop, http.MethodGet, base+pathNext, nil)
	if err != nil {
		return ctx, nil, err
	}
	reply, err := client.Do(request)
	if err != nil {
		return ctx, nil, err
	}
	defer reply.Body.Close()
	if event, err = io.ReadAll(reply.Body); err != nil { // it is cut
		return ctx, nil, err
	}
	if reply.StatusCode/100 != 2 {
		return ctx, nil, errors.New(reply.Status)
	}
	ctx.RequestID = reply.Header.Get(fieldRequestID)
	ctx.FunctionName = os.Getenv("RUNTIME_FUNC_NAME")
	if reply.StatusCode != http.StatusOK || ctx.RequestID == "" { // [any.poll.retry]
		return ctx, nil, errNoEvent
	}
	ctx.MemoryMB, _ = strconv.Atoi(os.Getenv("RUNTIME_MEMORY"))
	ctx.TimeLimitMS, _ = strconv.Atoi(os.Getenv("RUNTIME_TIMEOUT") + "000")
	return ctx, event, nil
}

// answer handles an event and posts what came of it.
func answer(ctx Context, event []byte) {
	path := pathResponse + url.PathEscape(ctx.RequestID)
	result, failure := handle(ctx, event)
	if failure != nil {
		path = pathError + url.PathEscape(ctx.RequestID)
		result, _ = json.Marshal(failure)
	}
	if err := post(path, result); err != nil { // once only [any.result.once]
		log.Printf("post result of %s: %v", ctx.RequestID, err)
	}
}

// handle calls the handler; an error that it returns, or a panic, becomes a Failure.
func handle(ctx Context, event []byte) (result []byte, failure *Failure) {
	defer func() { // [any.error.survive]
		if cause := recover(); cause != nil {
			stack := strings.Split(string(debug.Stack()), "\n")
			failure = &Failure{"Panic", fmt.Sprint(cause), stack}
		}
	}()
	result, err := Handle(ctx, event)
	if err != nil {
		failure = &Failure{fmt.Sprintf("%T", err), err.Error(), []string{}}
	}
	var named interface{ ErrorType() string }
	if errors.As(err, &named) {
		failure.ErrorType = named.ErrorType()
	}
	return result, failure
}

// post sends body to a path of the runtime API.
func post(path string, body []byte) error {
	reply, err := client.Post(base+path, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	io.Copy(io.Discard, reply.Body) // so that the connection can be used again
	if reply.StatusCode/100 != 2 {
		return errors.New(reply.Status)
	}
	return nil
}
