// Ask a server for recommendations by HTTP, with Go's standard library:
//
//	go run client.go http://127.0.0.1:8000 sku-00001 sku-00002
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

type tensor struct {
	Name     string `json:"name"`
	Shape    []int  `json:"shape,omitempty"`
	Datatype string `json:"datatype,omitempty"`
	Data     any    `json:"data,omitempty"`
}

type request struct {
	Inputs  []tensor `json:"inputs"`
	Outputs []tensor `json:"outputs"`
}

type answer struct {
	Error   string
	Outputs []struct {
		Name string
		Data []string // []int64 for a log of numbers
	}
}

func recommend(client *http.Client, url string, items []string, k int) ([]string, error) {
	body, err := json.Marshal(request{
		Inputs: []tensor{
			{"item_id", []int{1, len(items)}, "BYTES", items}, // INT64 for a log of numbers
			{"k", []int{1, 1}, "INT32", []int{k}},
		},
		Outputs: []tensor{{Name: "item_ids"}},
	})
	if err != nil {
		return nil, err
	}
	response, err := client.Post(url+"/v2/models/recommender/infer", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var lists answer
	if err := json.NewDecoder(response.Body).Decode(&lists); err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK || len(lists.Outputs) != 1 {
		return nil, fmt.Errorf("%s: %s", response.Status, lists.Error)
	}
	return lists.Outputs[0].Data, nil
}

func main() {
	client := &http.Client{Timeout: 5 * time.Second} // one for the whole service
	items, err := recommend(client, os.Args[1], os.Args[2:], 5)
	if err != nil {
		log.Fatal(err)
	}
	for _, item := range items {
		fmt.Println(item)
	}
}
