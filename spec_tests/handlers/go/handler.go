package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// The test handler in Go: it replaces handler.go of any bootstrap of examples/go. The
// event says what to do (../../README.md); one that is no instruction is the result.

// instruction is an event that says what to do.
type instruction struct {
	Do, Text, Type, Message, Name string

	Seconds float64
	Status  int
	Bytes   int
}

var invocations atomic.Int64

// Handle does what the event says.
func Handle(ctx Context, event []byte) ([]byte, error) {
	count := invocations.Add(1)
	var order instruction
	if !bytes.HasPrefix(event, []byte(`{"do":"`)) || json.Unmarshal(event, &order) != nil {
		return event, nil
	}
	switch order.Do {
	case "echo":
		return []byte(order.Text), nil
	case "raise":
		return nil, &Failure{order.Type, order.Message}
	case "sleep":
		time.Sleep(time.Duration(order.Seconds * float64(time.Second)))
		return []byte("slept"), nil
	case "exit":
		os.Exit(order.Status)
	case "print":
		fmt.Println(order.Text)
		return []byte("printed"), nil
	case "size":
		return bytes.Repeat([]byte("x"), order.Bytes), nil
	case "context":
		return contextJSON(ctx)
	case "env":
		return []byte(os.Getenv(order.Name)), nil
	case "count":
		return fmt.Append(nil, count), nil
	}
	return nil, &Failure{"Unsupported", "no such instruction: " + order.Do}
}

// contextJSON returns what is known of the context as JSON.
func contextJSON(ctx Context) ([]byte, error) {
	return json.Marshal(struct {
		RequestID    string `json:"request_id"`
		MemoryMB     int    `json:"memory_mb,omitempty"`
		TimeLimitMS  int    `json:"time_limit_ms,omitempty"`
		FunctionName string `json:"function_name,omitempty"`
	}{ctx.RequestID, ctx.MemoryMB, ctx.TimeLimitMS, ctx.FunctionName})
}
