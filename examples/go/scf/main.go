// A custom runtime for Tencent SCF: it polls for events and gives them to handler.go.
//
//	(cd examples/go/scf && CGO_ENABLED=0 go build -o bootstrap)
//	python3 reference/emulator.py scf examples/go/scf --event '{"key1": "value1"}'
//
// Variables: SCF_RUNTIME_API, SCF_RUNTIME_API_PORT (the runtime API), SCF_FUNCTIONNAME.
// Exit status: 0 after SIGTERM; an event that is being handled is answered first.
package main

import (
	"bytes"
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
	"time"
)

const (
	pathReady        = "/runtime/init/ready"
	pathNext         = "/runtime/invocation/next"
	pathResponse     = "/runtime/invocation/response"
	pathError        = "/runtime/invocation/error"
	fieldRequestID   = "Request_Id"
	fieldMemoryMB    = "Memory_Limit_In_Mb"
	fieldTimeLimitMS = "Time_Limit_In_Ms"
)

const firstPause, lastPause = 50 * time.Millisecond, 2 * time.Second // [any.poll.pause]

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

var base = os.ExpandEnv("http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT")

// client has no time limit, since next is a long poll [scf.next.no-timeout]; it goes
// past any proxy and follows no redirection, which is no event [any.poll.retry].
var client = http.Client{
	Timeout: 0, Transport: &http.Transport{Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return os.ErrInvalid },
}

// handling is held while there is an event to answer, and taken at the end.
var handling sync.Mutex

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-signals
		handling.Lock()
		os.Exit(0)
	}()
	for post(pathReady, []byte(" ")) != nil { // [scf.ready.body]
		time.Sleep(firstPause)
	}
	for {
		answer(next())
	}
}

// next returns the next event. It blocks until there is one.
func next() (Context, []byte) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		fields, event, err := read(client.Get(base + pathNext))
		if err == nil {
			return newContext(fields), event
		}
		if fields != nil { // there was an answer [any.poll.pause]
			pause = firstPause
		}
		time.Sleep(pause)
	}
}

// newContext takes the context from the header fields of the event and the variables.
func newContext(fields http.Header) Context {
	memoryMB, _ := strconv.Atoi(fields.Get(fieldMemoryMB))
	timeLimitMS, _ := strconv.Atoi(fields.Get(fieldTimeLimitMS))
	name := os.Getenv("SCF_FUNCTIONNAME")
	return Context{fields.Get(fieldRequestID), name, memoryMB, timeLimitMS}
}

// answer handles an event and posts what came of it.
func answer(ctx Context, event []byte) {
	handling.Lock()
	defer handling.Unlock()
	path := pathResponse
	result, failure := handle(ctx, event)
	if failure != nil {
		path = pathError
		result, _ = json.Marshal(failure)
	}
	post(path, result) // once only [any.result.once]
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

// post sends body to a path of the runtime API.
func post(path string, body []byte) error {
	_, _, err := read(client.Post(base+path, "", bytes.NewReader(body)))
	return err
}

// read returns fields and body of an answer. It is an error if the status is not 200.
func read(reply *http.Response, err error) (http.Header, []byte, error) {
	if err != nil {
		log.Print(err)
		return nil, nil, err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %s", reply.Request.URL, reply.Status)
		log.Print(err)
	}
	return reply.Header, body, err
}
