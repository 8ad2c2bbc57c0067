<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${self.title()} – backupfw</title>
<link rel="icon" href="${static('icon')}" type="image/svg+xml">
<link rel="stylesheet" href="${static('pico')}">
<link rel="stylesheet" href="${static('own')}">
<script src="${static('htmx')}" defer></script>
</head>
<body>
<header>
<a class="skip" href="#content">Skip to the content</a>
% if user is not None:
<nav aria-label="Pages">
<ul>
<li><strong>backupfw</strong></li>
% for part, name in menu:
<li><a href="${base}/${part}"${' aria-current="page"' if part == here else '' | n}>${name}</a></li>
% endfor
</ul>
<form method="post" action="${base}/logout"><span>${user.name}${f' in {user.project}' if user.project else ''}</span> <button class="small quiet">Log out</button></form>
</nav>
% else:
<nav aria-label="Pages"><ul><li><strong>backupfw</strong></li></ul></nav>
% endif
</header>
<main id="content">
${next.body()}
</main>
</body>
</html>
<%def name="title()"></%def>
<%!
    from urllib.parse import quote
%>
