<%doc>Parts that several pages have.</%doc>
<%def name="same(call, body, command, what='The same')">
<details class="same"><summary>${what} as an API call and as a command</summary>
<pre><code>${call}${f'\n\n{body}' if body else ''}</code></pre>
<pre><code>${command}</code></pre>
</details>
</%def>
<%def name="of_project(where, project)">
<form method="get" action="${base}/${where}" class="row">
<input type="search" name="project" value="${project}" maxlength="255" placeholder="Project" aria-label="Project">
<button class="quiet">Show</button>
</form>
</%def>
