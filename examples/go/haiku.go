// Haiku writes a haiku that contains the current minute in words, which nobody can have written beforehand. A small
// model does not always obey, so up to 32 haiku are generated, each with a seed of its own.
//
//	go run kigo.go haiku.go model.gguf [device]
package main

import (
	"fmt"
	"log"
	"os"
	"regexp"
	"strings"
	"time"
)

const maxAttempts = 32

var small = strings.Fields(`zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
	sixteen seventeen eighteen nineteen`)
var tens = []string{"twenty", "thirty", "forty", "fifty"}

func minuteInWords(minute int) string {
	switch {
	case minute < 20:
		return small[minute]
	case minute%10 == 0:
		return tens[minute/10-2]
	}
	return tens[minute/10-2] + "-" + small[minute%10]
}

// contains says whether the text holds the whole word, "forty two" for "forty-two" included.
func contains(text, word string) bool {
	pattern := `(?i)(^|[^a-z-])` + strings.ReplaceAll(word, "-", "[- ]") + `($|[^a-z-])`
	return regexp.MustCompile(pattern).MatchString(text)
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("haiku: ")
	if len(os.Args) < 2 {
		log.Fatal("usage: haiku model.gguf [device]")
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
	now := time.Now()
	word := minuteInWords(now.Minute())
	prompt := fmt.Sprintf("Write a haiku of three short lines about the number %s. Each line contains the word %q.", word, word)
	fmt.Println("minute:", word)
	for n := 1; n <= maxAttempts; n++ {
		var haiku strings.Builder
		options := Options{"prompt_format": "user", "max_tokens": 48, "seed": int(now.Unix())*maxAttempts + n}
		fmt.Println()
		err := model.Generate(prompt, options, func(piece string) bool {
			fmt.Print(piece)
			haiku.WriteString(piece)
			return true
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("\n\n[attempt %d: %t]\n", n, contains(haiku.String(), word))
		if contains(haiku.String(), word) {
			return
		}
	}
	log.Fatalf("none of %d attempts contains %q", maxAttempts, word)
}
