// A custom runtime for Alibaba FC: an HTTP server that gives each event to Handle
// (handler.go) and answers with its result or error. Requests run in parallel.
//
//	(cd examples/go/fc && CGO_ENABLED=0 go build -o bootstrap)
//	python3 reference/emulator.py fc examples/go/fc --event '{"key1": "value1"}'
//
// Variables: FC_SERVER_PORT, else FC_CUSTOM_LISTEN_PORT, else 9000. [fc.start.port]
// POST /invoke brings an event. The hooks /initialize, /pre-freeze and /pre-stop are
// answered with 200 and do nothing else. Any other path is an HTTP request: its body is
// the event, the result is sent as text. Exit status: 0 after SIGTERM, when the running
// requests have been answered; 1 if the port cannot be had.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
)

const (
	pathInvoke        = "/invoke"
	pathHTTPInvoke    = "/http-invoke"
	pathInitialize    = "/initialize"
	pathPreFreeze     = "/pre-freeze"
	pathPreStop       = "/pre-stop"
	fieldControlPath  = "X-Fc-Control-Path"
	fieldRequestID    = "X-Fc-Request-Id"
	fieldFunctionName = "X-Fc-Function-Name"
	fieldMemoryMB     = "X-Fc-Function-Memory"
	fieldTimeLimitS   = "X-Fc-Function-Timeout"
	fieldStatus       = "X-Fc-Status"
)

// Context tells the handler about its invocation; 0 and "" mean that it is not known.
type Context struct {
	RequestID, FunctionName string
	MemoryMB, TimeLimitMS   int
}

// Failure is the error document of a failed invocation. [any.error.document]
type Failure struct {
	ErrorType    string `json:"errorType"`
	ErrorMessage string `json:"errorMessage"`
}

func (f *Failure) Error() string { return f.ErrorMessage }

// running is held for reading by each request, and for writing at the end.
var running sync.RWMutex

func main() {
	port := cmp.Or(os.Getenv("FC_SERVER_PORT"), os.Getenv("FC_CUSTOM_LISTEN_PORT"), "9000")
	go stopOnSignal()
	// On all addresses and without time limits. [fc.start.port] [fc.connection.keep-alive]
	log.Fatal(http.ListenAndServe("0.0.0.0:"+port, http.HandlerFunc(serve)))
}

// stopOnSignal ends the process once the requests that run have been answered.
func stopOnSignal() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	<-signals
	running.Lock()
	os.Exit(0)
}

// serve answers one request.
func serve(reply http.ResponseWriter, request *http.Request) {
	event, err := io.ReadAll(request.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the body is cut: there is nobody to answer
	}
	running.RLock()
	defer running.RUnlock()
	named := request.Header.Get(fieldControlPath) // [fc.invoke.kind]
	kind := cmp.Or(named, request.URL.Path)
	switch kind {
	case pathInitialize, pathPreFreeze, pathPreStop:
		answer(reply, http.StatusOK, "text/plain", nil) // [fc.hook.answer]
		return
	case pathInvoke, pathHTTPInvoke:
	default:
		if named != "" { // [fc.invoke.unknown]
			answer(reply, http.StatusNotFound, "text/plain", nil)
			return
		}
	}
	result, failure := handle(newContext(request.Header), event)
	switch {
	case failure == nil && kind == pathInvoke:
		answer(reply, http.StatusOK, "application/octet-stream", result)
	case failure == nil:
		answer(reply, http.StatusOK, "text/plain; charset=utf-8", result)
	default:
		status := http.StatusNotFound // [fc.invoke.status]
		if kind != pathInvoke {
			status = http.StatusInternalServerError
		}
		document, _ := json.Marshal(failure)
		answer(reply, status, "application/json", document)
	}
}

// answer sends a whole answer at once, before the process may end.
func answer(reply http.ResponseWriter, status int, kind string, body []byte) {
	reply.Header().Set("Content-Type", kind)
	reply.Header().Set("Content-Length", strconv.Itoa(len(body)))
	reply.Header().Set(fieldStatus, "200") // [fc.invoke.success-field]
	if status != http.StatusOK {
		reply.Header().Set(fieldStatus, "404")
	}
	reply.WriteHeader(status)
	reply.Write(body)
	http.NewResponseController(reply).Flush()
}

// newContext takes the context from the common header fields.
func newContext(fields http.Header) Context {
	memoryMB, _ := strconv.Atoi(fields.Get(fieldMemoryMB))
	timeLimitS, _ := strconv.Atoi(fields.Get(fieldTimeLimitS))
	return Context{
		fields.Get(fieldRequestID), fields.Get(fieldFunctionName),
		memoryMB, 1000 * timeLimitS,
	}
}

// handle calls the handler; an error that it returns, or a panic, becomes a Failure.
func handle(ctx Context, event []byte) (result []byte, failure *Failure) {
	defer func() { // [any.error.survive]
		if cause := recover(); cause != nil {
			debug.PrintStack()
			failure = &Failure{"Panic", fmt.Sprint(cause)}
		}
	}()
	result, err := Handle(ctx, event)
	if err != nil && !errors.As(err, &failure) {
		failure = &Failure{fmt.Sprintf("%T", err), err.Error()}
	}
	return result, failure
}
