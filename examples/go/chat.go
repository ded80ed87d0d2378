// Chat reads a line, streams the answer, and remembers the conversation until the context is full.
//
//	go run kigo.go chat.go model.gguf [device]
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// answer streams what the model says to the conversation, and returns it.
func answer(model *Model, conversation []message) (string, error) {
	prompt, err := json.Marshal(conversation)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = model.Generate(string(prompt), Options{"prompt_format": "chat"}, func(piece string) bool {
		fmt.Print(piece)
		text.WriteString(piece)
		return true
	})
	fmt.Println()
	return text.String(), err
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("chat: ")
	if len(os.Args) < 2 {
		log.Fatal("usage: chat model.gguf [device]")
	}
	device := "auto"
	if len(os.Args) > 2 {
		device = os.Args[2]
	}
	model, err := Load(os.Args[1], Options{"device": device})
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()

	var conversation []message
	lines := bufio.NewScanner(os.Stdin)
	for fmt.Print("> "); lines.Scan(); fmt.Print("> ") {
		conversation = append(conversation, message{"user", lines.Text()})
		text, err := answer(model, conversation)
		if err != nil {
			log.Fatal(err)
		}
		conversation = append(conversation, message{"assistant", text})
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
